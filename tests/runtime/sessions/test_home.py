"""One model has one folder in a store and the same sessions, whatever it is called and whichever version made it."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from places import DATA, RECALL
from tiny_gguf import write_tiny_gguf
from typer.testing import CliRunner

from stratakv.runtime import Chat, KVConfig, Runtime, SessionError
from stratakv.runtime.cli.app import app
from stratakv.runtime.model.locate import ALIASES, Alias, locate
from stratakv.runtime.sessions import home
from stratakv.runtime.sessions.saved import describe, store_folders
from stratakv.storage import DiskTier, StorageFullError

pytestmark = pytest.mark.usefixtures("own_cache")

(OLD,) = sorted((DATA / "stores").glob("recall_*"))
PAIRS = " ".join(f"k{i} v{i * 7 % 23}" for i in range(24))


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return shutil.copytree(RECALL, tmp_path / "a")


def load(model: Path | str, store: Path, *, dtype: str = "bfloat16", **kv: Any) -> Runtime:
    return Runtime.load(model, dtype=dtype, kv=KVConfig(path=store, **{"host_gb": 0.05, "disk_gb": 0.05, **kv}))


def save(model: Path | str, store: Path, name: str, text: str = PAIRS, **kv: Any) -> None:
    with load(model, store, **kv) as runtime:
        chat = runtime.chat()
        chat.read_text(text)
        chat.save(name)


def sessions(store: Path, *words: str) -> str:
    result = CliRunner().invoke(app, ["sessions", words[0], "--kv-dir", str(store), *words[1:]])
    assert result.exit_code in (0, 2), result.exception
    return result.output


def with_setting(model: Path, folder: Path, **changes: Any) -> Path:
    shutil.copytree(model, folder)
    said = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**said, **changes}))
    return folder


def old_store(store: Path, prefix: str = "recall") -> Path:
    """A copy of the committed store, under another spelling's name."""
    folder = store / f"{prefix}_{OLD.name.rpartition('_')[2]}"
    shutil.copytree(OLD, folder)
    os.chmod(store, 0o700)
    os.chmod(folder, 0o700)
    for path in folder.iterdir():
        os.chmod(path, 0o600)
    return folder


def is_whole(chat: Chat) -> bool:
    """Whether every page was found."""
    return chat.restored == chat.num_tokens > 16


# Spellings


def test_every_spelling_finds_the_session(model: Path, store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(model, store, "s")
    (model.parent / "b").symlink_to(model)
    copy = shutil.copytree(model, model.parent / "c with space")
    newer = with_setting(model, model.parent / "d", transformers_version="99.0.0", eos_token_id=[0, 7])
    monkeypatch.chdir(model)
    for spelling in (model, model.parent / "b", copy, newer, ".", "../a", f"{model}/", "../c with space"):
        with load(spelling, store) as runtime:
            assert runtime.sessions() == ["s"]
            assert is_whole(runtime.chat(session="s")), spelling
            assert runtime.chat().read_text(PAIRS).cached > 16
    (folder,) = store.iterdir()
    assert folder.name.startswith("a_")
    names = describe(folder)["names"]
    assert {str(model), str(copy), str(newer)} <= set(names)
    assert "." not in names


def test_an_old_folder_is_listed_before_it_was_ever_opened(model: Path, store: Path) -> None:
    old_store(store)
    assert sessions(store, "list", "-m", str(model)).startswith("old ")
    assert sessions(store, "list", "-m", str(with_setting(model, model.parent / "b", rms_norm_eps=1.0))) == (
        "no sessions\n"
    )


def test_what_changes_a_number_is_another_store(model: Path, store: Path) -> None:
    save(model, store, "s")
    other = with_setting(model, model.parent / "other", rms_norm_eps=1e-3)
    with load(other, store) as runtime:
        assert runtime.sessions() == []
        assert runtime.chat().read_text(PAIRS).cached == 0
        with pytest.raises(SessionError, match=f"no session 's'.*there is one with model='{model}'"):
            runtime.chat(session="s")
    assert len(store_folders(store)) == 2


def test_a_gguf_file_is_one_model_under_any_name(tmp_path: Path, store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = write_tiny_gguf(tmp_path / "tiny.gguf")
    save(whole, store, "s", "A short text to keep. ")
    converted: list[str] = []
    renamed = Path(shutil.copy(whole, tmp_path / "renamed \u0436-1.Q4.GGUF"))
    assert locate(str(renamed), "bfloat16", on_convert=converted.append).name.startswith("tiny-")
    package = tmp_path / "lib" / "tiny_model_package"
    package.mkdir(parents=True)
    shutil.copy(whole, package / "m.gguf")
    monkeypatch.syspath_prepend(str(package.parent))
    monkeypatch.setitem(ALIASES, "tiny", Alias("nobody/nothing", ("tiny_model_package/m.gguf",), "-"))
    made = shutil.copytree(locate(str(whole), "bfloat16", on_convert=converted.append), tmp_path / "copied")
    assert converted == []
    for spelling in (renamed, "tiny", made):
        with load(spelling, store) as runtime:
            assert runtime.sessions() == ["s"], spelling
    assert len(store_folders(store)) == 1
    for spelling in (whole, renamed, "tiny", made):
        assert "s " in sessions(store, "list", "-m", str(spelling)), spelling


def test_the_commands_take_any_spelling(model: Path, store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(model, store, "s")
    copy = with_setting(model, model.parent / "copy", transformers_version="99.0.0")
    other = with_setting(model, model.parent / "other", rms_norm_eps=1e-3)
    save(other, store, "t")
    (model.parent / "link").symlink_to(model)
    monkeypatch.chdir(model)
    for spelling in (".", "../a", str(copy), str(model.parent / "link")):
        listed = sessions(store, "list", "-m", spelling)
        assert listed.split()[0] == "s"
        assert listed.count("\n") == 1
        assert "session   s" in sessions(store, "show", "s", "-m", spelling)
    assert sessions(store, "list", "-m", "nothing/nowhere") == "no sessions\n"
    asked = sessions(store, "show", "s", "-m", str(other))
    assert "no session 's'; saved: t; there is one elsewhere: --in a_" in asked
    assert sessions(store, "rm", "s", "-m", str(copy)) == ""
    assert sessions(store, "list").split()[0] == "t"


def test_a_folder_is_chosen_and_made_while_no_other_process_can(
    tmp_path: Path, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or two that begin together would make one each."""
    honest, seen = home.private_folder, []

    def make(folder: Path) -> None:
        other = os.open(store, os.O_RDONLY)
        try:
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            seen.append(folder)
        finally:
            os.close(other)
        honest(folder)

    monkeypatch.setattr(home, "private_folder", make)
    found = [home.find_home(store, name, {"weights": "w"}, {}, former=dict).folder for name in ("one", "two")]
    assert found == seen == [found[0]] * 2
    assert found[0].name.startswith("one_")


# Folders of earlier versions


def test_an_old_folder_is_used_as_it_is(model: Path, store: Path) -> None:
    old = old_store(store)
    with load(model, store) as runtime:
        chat = runtime.chat(session="old")
        assert is_whole(chat)
        assert [message["content"] for message in chat.messages] == ["text", "? k3", "v21 v7"]
        chat.send("? k2", max_new_tokens=2)
        chat.save("new")
    newer = with_setting(model, model.parent / "newer", transformers_version="99.0.0")
    with load(newer, store) as runtime:  # whose files never had that fingerprint
        assert runtime.sessions() == ["new", "old"]
        assert is_whole(runtime.chat(session="new"))
    assert store_folders(store) == [old]


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


def test_a_damaged_config_json_is_written_anew(model: Path, store: Path) -> None:
    save(model, store, "s")
    (folder,) = store_folders(store)
    (folder / "config.json").write_bytes(b"\xff{")
    with load(model, store) as runtime:
        assert runtime.sessions() == ["s"]
    assert describe(folder)["model"] == str(model)


# What is not there


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


def test_nearly_the_name_is_asked_about_and_a_long_list_is_cut(model: Path, store: Path) -> None:
    with load(model, store) as runtime:
        chat = runtime.chat()
        chat.read_text(PAIRS)
        for number in range(12):
            chat.save(f"Letter {number}")
        with pytest.raises(SessionError) as caught:
            runtime.chat(session="letter 3")
    assert "Letter 10, Letter 11, Letter 2" in str(caught.value)
    assert "and 2 more; did you mean 'Letter 3'" in str(caught.value)


# Names


def test_an_accent_composed_otherwise_is_the_same_name(model: Path, store: Path) -> None:
    composed, apart = "caf\u00e9", "cafe\u0301"
    save(model, store, apart)
    with load(model, store) as runtime:
        assert runtime.sessions() == [composed]
        for name in (composed, apart):
            chat = runtime.chat(session=name)
            assert chat.would_replace(apart) is None
            chat.save(name)
        assert runtime.store.disk is not None
        runtime.store.disk.put_session(apart, b"")  # as earlier versions did
        assert runtime.sessions() == [apart, composed]
    assert "session   " in sessions(store, "show", composed)
    assert sessions(store, "rm", composed) == ""
    assert sessions(store, "rm", composed) == "", "the other one"
    assert sessions(store, "list") == "no sessions\n"


def test_the_advice_can_be_typed(model: Path, store: Path) -> None:
    for name in ("-rf", "two words; $HOME"):
        save(model, store, name)
    with load(model, store) as runtime:
        assert runtime.store.disk is not None
        for name in ("-rf", "two words; $HOME"):
            runtime.store.disk.put_session(name, b"damaged")
    asked = sessions(store, "show", "--", "-rf")
    assert asked.rstrip().endswith(f"to remove it: stratakv sessions rm --kv-dir {store} -- -rf")
    assert f"rm 'two words; $HOME' --kv-dir {store}" in sessions(store, "show", "two words; $HOME")


def test_columns_of_wide_and_long_names(model: Path, store: Path) -> None:
    with load(model, store) as runtime:
        chat = runtime.chat()
        chat.read_text(PAIRS)
        for name in ("a", "\u8a71\u8a71", "x" * 150):
            chat.save(name)
    wide, narrow, long = sorted(sessions(store, "list").splitlines(), key=len)
    assert narrow.index("tokens") == wide.index("tokens") + 2 == 51
    assert long.startswith("x" * 150 + "  ")
