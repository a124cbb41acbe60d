"""A session in another folder of the same model comes over when it is asked for; one of other settings is named."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path
from typing import Any

import pytest
from large_pages import overwrite
from made_stores import LAYERS, chains, fingerprint, made_folder
from places import RECALL
from recall_stores import is_whole, load, old_store, save, sessions, with_setting

from stratakv.runtime import KVConfig, Runtime, SessionError
from stratakv.runtime.sessions.elsewhere import (
    bring_over,
    folders_with,
    names_by_settings,
    names_in_twins,
    place_in_twins,
    told_where,
)
from stratakv.runtime.sessions.saved import store_folders
from stratakv.storage import DiskTier, StorageFullError, page_key

pytestmark = pytest.mark.usefixtures("own_cache")


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return shutil.copytree(RECALL, tmp_path / "a")


# Folders of the same model


def test_of_several_old_folders_every_session_is_found(model: Path, store: Path) -> None:
    """Earlier versions made one for each spelling. Asked for, a session comes over with its pages."""
    one, two = old_store(store, "one"), old_store(store, "two")
    with load(model, store) as runtime:
        assert runtime.store.disk is not None
        home = runtime.store.disk.folder
        assert home == two, "as large, and the last by name"
        runtime.chat(session="old").save("kept in two")
    sessions(store, "rm", "old", "--in", "two")
    with load(model, store) as runtime:
        assert runtime.sessions() == ["kept in two", "old"]
        assert is_whole(runtime.chat(session="old"))
        assert runtime.sessions() == ["kept in two", "old"]
    assert sessions(store, "list", "--in", one.name) == "no sessions\n"
    assert sessions(store, "list", "--in", two.name).count("\n") == 2
    assert "0 damaged" in sessions(store, "verify")


def test_a_session_comes_over_to_a_folder_of_another_fingerprint(model: Path, store: Path) -> None:
    """A later spelling came first, and made a folder before the old one was known to be of its model."""
    newer = with_setting(model, model.parent / "newer", transformers_version="99.0.0")
    old = old_store(store)
    for number in range(3):  # as much as makes it the larger one
        save(newer, store, f"s{number}", " ".join(f"k{i} v{number}" for i in range(300)))
    assert len(store_folders(store)) == 2
    with load(model, store) as runtime:
        assert runtime.store.disk is not None
        assert runtime.store.disk.folder != old
        chat = runtime.chat(session="old")
        assert is_whole(chat)
        assert chat.send("? k2", max_new_tokens=2).usage.cached_tokens >= chat.restored
        assert runtime.stats()["pages_recomputed"] == 0
    with load(newer, store) as runtime:
        assert runtime.sessions() == ["old", "s0", "s1", "s2"]


def test_a_session_comes_over_to_a_full_folder(model: Path, store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What nobody saved gives way to it; if nothing does, it stays where it is."""
    one = old_store(store, "one")
    save(model, store, "x", " ".join(f"k{i} v1" for i in range(300)))  # one is the only folder: it is the larger now
    two, honest = old_store(store, "two"), DiskTier.copy_pages
    sessions(store, "rm", "old", "--in", "one")
    with load(model, store) as runtime:
        chat = runtime.chat()
        chat.read_text("v1 " * 100)
        runtime.store.flush()
        chat.close()
        assert runtime.store.disk is not None
        assert runtime.store.disk.folder == one

        def full(disk: DiskTier, *_: object) -> None:
            raise StorageFullError("full", is_at_cap=True)

        def full_once(disk: DiskTier, source: DiskTier, keys: list[bytes]) -> None:
            if not room:
                full(disk)
            honest(disk, source, keys)

        room: list[int] = []
        make_room = runtime.store.make_room
        monkeypatch.setattr(runtime.store, "make_room", lambda needed: room.append(make_room(needed)) or 1)
        monkeypatch.setattr(DiskTier, "copy_pages", full)
        with pytest.raises(SessionError, match="cannot be brought here from another folder: full"):
            runtime.chat(session="old")
        room.clear()
        monkeypatch.setattr(DiskTier, "copy_pages", full_once)
        assert sessions(store, "list", "--in", two.name).startswith("old ")
        assert is_whole(runtime.chat(session="old"))
        assert room
        assert sessions(store, "list", "--in", two.name) == "no sessions\n"


def test_a_session_of_the_same_name_in_another_folder_is_named(
    model: Path, store: Path, caplog: pytest.LogCaptureFixture
) -> None:
    old_store(store, "one")
    old_store(store, "two")
    with load(model, store) as runtime:
        runtime.chat(session="old").save("old")
    assert f"another session 'old' of this model stays in {store / 'one'}" in caplog.text
    assert "choose one with --in: one_" in sessions(store, "show", "old")


# Other settings


@pytest.fixture
def saved(model: Path, store: Path) -> tuple[Path, Path]:
    save(model, store, "keeper")
    return model, store


@pytest.mark.parametrize(
    ("settings", "advice"),
    [
        ({"page_size": 8}, "page_size=16"),
        ({"codec": "int8"}, "codec='zstd'"),
        ({"dtype": "float32"}, "dtype='bfloat16'"),
        ({"codec": "int4", "page_size": 32}, "page_size=16, codec='zstd'"),
    ],
)
def test_where_else_a_session_is_is_said(saved: tuple[Path, Path], settings: dict[str, Any], advice: str) -> None:
    model, store = saved
    (folder,) = store_folders(store)
    with load(model, store, **settings) as runtime, pytest.raises(SessionError) as caught:
        runtime.chat(session="keeper")
    assert str(caught.value) == (
        "no session 'keeper' for this model and these settings; saved: none; there is one with "
        f"{advice} (folder {folder.name})"
    )


def test_the_caches_dtype_is_told_from_the_models(saved: tuple[Path, Path]) -> None:
    model, store = saved
    cache = KVConfig(path=store, host_gb=0.05, disk_gb=0.05, dtype="float32")
    with Runtime.load(model, dtype="bfloat16", kv=cache) as runtime:
        with pytest.raises(SessionError, match=r"one with KVConfig\(dtype='bfloat16'\) \(folder"):
            runtime.chat(session="keeper")
        runtime.chat().save("wide")
    with load(model, store) as runtime, pytest.raises(SessionError, match=r"one with KVConfig\(dtype='float32'\)"):
        runtime.chat(session="wide")


def test_a_codec_that_loses_is_named(model: Path, store: Path) -> None:
    save(model, store, "lossy", codec="int8")
    with load(model, store) as runtime, pytest.raises(SessionError, match="there is one with codec='int8'"):
        runtime.chat(session="lossy")


# Without a model


def opened(folder: Path, number: int = 1) -> DiskTier:
    return DiskTier(folder, 8 << 20, fingerprint(number), None)


def test_a_session_is_in_one_folder_whatever_happens_on_the_way(store: Path) -> None:
    """It goes from the other one last, with none of the pages there; a damaged page is not brought."""
    target = made_folder(store, "m", {}, identity="i")
    source = made_folder(store, "m", {"s": "abc"}, number=2, identity="i")
    overwrite(source, page_key(0, chains("c")[0]), lambda old: old[:-1])
    disk = opened(target)
    assert (names_in_twins(disk), place_in_twins(disk, "s")) == (["s"], source)
    bring_over(disk, "unknown", [*LAYERS], lambda num_bytes: 0)
    bring_over(disk, "s", [*LAYERS], lambda num_bytes: 0)
    assert (names_in_twins(disk), place_in_twins(disk, "s")) == ([], None)
    assert disk.get_session("s") is not None
    there = {key for key, _ in disk.page_sizes()}
    assert there == {page_key(layer, chain) for layer in LAYERS for chain in chains("abc")} - {
        page_key(0, chains("c")[0])
    }
    assert list(disk.damaged_pages()) == []
    disk.close()


def test_a_message_names_three_places_at_most(store: Path) -> None:
    mine = made_folder(store, "m", {}, number=9, weights="w", dtype="torch.float32")
    others = [
        made_folder(store, "m", {"s": "a"}, number=number, weights="w", dtype="torch.float32", codec=f"c{number}")
        for number in range(1, 6)
    ]
    disk = opened(mine, 9)
    assert told_where(disk, "t") == ""
    assert told_where(disk, "s") == "; there is one with " + ", and with ".join(
        f"codec='c{number}' (folder {folder.name})" for number, folder in enumerate(others[:3], 1)
    ) + " and in 2 more folders"  # fmt: skip
    disk.close()


def test_names_are_told_by_the_settings_that_find_them(store: Path) -> None:
    layouts = [
        {"dtype": dtype, "page_size": size} for dtype, size in (("bfloat16", 16), ("float32", 16), ("float32", 8))
    ]
    same = {"weights": "w", "dtype": "torch.bfloat16"}
    mine = made_folder(store, "m", {"own": "a"}, layout=layouts[0], **same)
    made_folder(store, "m", {"s": "a", "t": "a"}, number=2, layout=layouts[1], **same)
    made_folder(store, "m", {"u": "a"}, number=3, layout=layouts[2], products="int4", **same)
    made_folder(store, "other", {"v": "a"}, number=4, layout=layouts[1], weights="x")
    made_folder(store, "m", {}, number=5, layout=layouts[1], codec="int8", **same)
    disk = opened(mine)
    assert names_by_settings(disk) == {
        "KVConfig(dtype='float32')": ["s", "t"],
        "weights='int4', KVConfig(dtype='float32'), page_size=8": ["u"],
    }
    disk.close()


def test_a_folder_that_cannot_be_opened_is_left_out(store: Path, caplog: pytest.LogCaptureFixture) -> None:
    folders = [made_folder(store, "m", {"s": "a"}, number=number) for number in (1, 2)]
    (folders[0] / "data.mdb").write_bytes(b"damaged")
    with caplog.at_level(logging.INFO):
        assert folders_with("s", folders) == folders[1:]
    assert f"{folders[0]} is not looked into: " in caplog.text
