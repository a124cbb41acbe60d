"""One cap for a store folder, whatever shares it: what was saved stays usable, and the folder stays below it."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pytest
from places import RECALL
from recall import NAMES, make_context
from small_disk import SmallDisk, small_disk, taken
from typer.testing import CliRunner

from stratakv.runtime import Chat, DoesNotFitError, KVConfig, Runtime, SessionError
from stratakv.runtime.cli.app import app
from stratakv.runtime.sessions.saved import StoreFolder, is_left_behind, store_folders
from stratakv.storage.files.nameless import name_file

pytestmark = pytest.mark.usefixtures("own_cache")

MB = 10**6
TOKENS = 500
"""Of a text: half a megabyte of KV in fp32."""
KINDS: list[dict[str, Any]] = [
    {"dtype": "float32"}, {"dtype": "bfloat16"}, {"dtype": "float32", "codec": "int8"},
    {"dtype": "float32", "page_size": 8},
]  # fmt: skip


@pytest.fixture
def disk(store: Path, monkeypatch: pytest.MonkeyPatch) -> SmallDisk:
    return small_disk(store, 8 * MB, monkeypatch)


def num_pages(folder: Path) -> int:
    with StoreFolder(folder) as found:
        return found.disk.num_pages


def text(seed: int, tokens: int = TOKENS) -> str:
    return " ".join(NAMES[token] for token in make_context(np.random.default_rng(seed), tokens, 60)[0])


def load(store: Path, model: Path = RECALL, *, dtype: str = "float32", host_gb: float = 0.05, **kv: Any) -> Runtime:
    return Runtime.load(model, dtype=dtype, kv=KVConfig(path=store, host_gb=host_gb, index="bounds", **kv))


def read(runtime: Runtime, *seeds: int, tokens: int = TOKENS) -> Chat:
    """The last of the conversations that read a text each."""
    for seed in seeds:
        chat = runtime.chat()
        chat.read_text(text(seed, tokens))
    return chat


def save(runtime: Runtime, name: str, seed: int, tokens: int = TOKENS) -> None:
    read(runtime, seed, tokens=tokens).save(name)


def go_on(runtime: Runtime, name: str) -> None:
    """Resume a session, whole, and ask something."""
    chat = runtime.chat(session=name)
    assert chat.restored == chat.num_tokens, "a page was lost"
    assert chat.send("? k2", max_new_tokens=2, ignore_eos=True).usage.completion_tokens == 2


def updated(model: Path, number: int) -> None:
    """Other numbers under the same name, as an update brings them."""
    about = model / "config.json"
    about.write_text(json.dumps({**json.loads(about.read_text()), "rms_norm_eps": 10**-number}))


def sessions(store: Path, *words: str) -> str:
    result = CliRunner().invoke(app, ["sessions", words[0], "--kv-dir", str(store), *words[1:]])
    assert result.exit_code == 0, result.output
    return result.output


# The default cap


def test_what_the_store_holds_is_its_own_room(store: Path, disk: SmallDisk, caplog: pytest.LogCaptureFixture) -> None:
    """The larger half of a small disk: a second start has the first one's cap, and goes on with what was saved."""
    with load(store) as runtime:
        first = runtime.plan
        assert first.disk_bytes == disk.size // 2
        save(runtime, "mine", 1, tokens=3 * TOKENS)
        read(runtime, 2, tokens=2 * TOKENS)
    for _ in range(2):
        with load(store) as runtime:
            assert runtime.plan.disk_bytes >= first.disk_bytes
            go_on(runtime, "mine")
    assert taken(store) <= first.disk_bytes
    assert "gc --max-gb" not in caplog.text


@pytest.mark.parametrize("free", [0, 100_000, 2 * MB])
def test_a_disk_that_others_fill_takes_nothing_from_what_was_saved(store: Path, disk: SmallDisk, free: int) -> None:
    with load(store) as runtime:
        save(runtime, "mine", 1, tokens=3 * TOKENS)
    held = taken(store)
    disk.foreign = disk.size - held - free
    with load(store) as runtime:
        assert runtime.plan.disk_bytes >= held
        go_on(runtime, "mine")
        read(runtime, 2, tokens=4 * TOKENS)
        assert taken(store) <= runtime.plan.store_bytes
    with load(store) as runtime:
        go_on(runtime, "mine")


def test_advice_fits_what_was_set(store: Path, disk: SmallDisk, caplog: pytest.LogCaptureFixture) -> None:
    disk.size = 4 * MB
    with load(store) as runtime, pytest.raises(SessionError, match=r"set disk_gb above 0\.002, if the disk has room"):
        save(runtime, "mine", 1, tokens=5 * TOKENS)
    with load(store, host_gb=0.0035) as runtime, pytest.raises(DoesNotFitError, match=r"set disk_gb above 0\.00"):
        read(runtime, 1, tokens=6 * TOKENS)
    with load(store, disk_gb=0.002) as runtime, pytest.raises(SessionError, match=r"; raise disk_gb$"):
        save(runtime, "mine", 1, tokens=5 * TOKENS)
    assert "--" not in caplog.text, "Python has no flags"


def test_a_full_disk_is_what_is_to_be_mended_and_not_the_cap(
    store: Path, disk: SmallDisk, caplog: pytest.LogCaptureFixture
) -> None:
    with load(store) as runtime:
        save(runtime, "mine", 1)
    disk.foreign = disk.size - taken(store)
    advice = f"make room on the disk of {store}, which has 0 GB free, or name another folder \\(path=\\)"
    with load(store) as runtime, pytest.raises(SessionError, match=f"cap .*; {advice} or remove sessions"):
        save(runtime, "more", 2, tokens=4 * TOKENS)
    with load(store, host_gb=0.0035) as runtime, pytest.raises(DoesNotFitError, match=advice):
        read(runtime, 3, tokens=6 * TOKENS)
    shutil.rmtree(store)
    disk.foreign = disk.size
    caplog.clear()
    with load(store, host_gb=0.0035) as runtime:
        assert runtime.store.disk is None
        assert re.search(f"nothing is kept: to keep something {advice}", caplog.text)
        with pytest.raises(DoesNotFitError, match=f"raise host_gb, or {advice}"):
            read(runtime, 3, tokens=6 * TOKENS)
        with pytest.raises(DoesNotFitError, match=f"raise host_gb, or {advice}"):
            runtime.generate([text(1, 300)] * 8, max_new_tokens=300)


# One cap for all folders


def test_all_kinds_share_one_cap(store: Path) -> None:
    cap = 2 * MB
    for kind in KINDS:
        with load(store, disk_gb=cap / 1e9, **kind) as runtime:
            for seed in range(3):
                read(runtime, seed)
                assert taken(store) <= cap
        assert taken(store) <= cap
    assert len(store_folders(store)) == len(KINDS)


def test_unsaved_pages_go_where_they_were_used_longest_ago_and_sessions_stay(
    store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []

    def spy(file: BinaryIO, path: str) -> None:
        sizes.append(taken(store))
        name_file(file, path)

    monkeypatch.setattr("stratakv.storage.disk.lmdb_file.name_file", spy)
    cap = {"disk_gb": 2.4 * MB / 1e9}
    for number, kind in enumerate(KINDS[:3]):
        with load(store, **cap, **kind) as runtime:
            save(runtime, f"s{number}", number, tokens=TOKENS // 2)
            read(runtime, 10 + number)
    folders = sorted(store_folders(store), key=lambda folder: (folder / "data.mdb").stat().st_mtime_ns)
    before = list(map(num_pages, folders))
    with load(store, **cap, **KINDS[3]) as runtime:
        read(runtime, 5)
        runtime.store.flush()
        assert taken(store) <= 2.4 * MB
    after = list(map(num_pages, folders))
    assert after[0] < 0.4 * before[0], "two thirds were not saved"
    assert after[1:] == before[1:]
    assert len(sizes) == 1
    assert sizes[0] <= 2.4 * MB, "not even while the file was made smaller"
    for number, kind in enumerate(KINDS[:3]):
        with load(store, **cap, **kind) as runtime:
            go_on(runtime, f"s{number}")


def test_a_reply_of_any_length_asks_nobody_for_room_that_it_does_not_need(store: Path) -> None:
    with load(store, disk_gb=0.003) as runtime:
        read(runtime, 1)
    (other,) = store_folders(store)
    before = num_pages(other)
    with load(store, dtype="bfloat16", disk_gb=0.003) as runtime:
        runtime.generate(["k1 v1 ? k1"], max_new_tokens=-1, stop_strings=["v", "k", "f"])
    assert num_pages(other) == before


def test_a_cap_that_was_lowered_is_kept(store: Path, caplog: pytest.LogCaptureFixture) -> None:
    with load(store, disk_gb=0.02) as runtime:
        save(runtime, "mine", 1, tokens=TOKENS // 2)
        read(runtime, 2, 3, 4)
    with load(store, dtype="bfloat16", disk_gb=0.02) as runtime:
        read(runtime, 2, 3, 4)
    assert taken(store) > 2 * MB
    with load(store, disk_gb=0.0012) as runtime:
        assert taken(store) <= 1.2 * MB
        go_on(runtime, "mine")
    assert caplog.text == ""
    with load(store, disk_gb=0.02) as runtime:
        save(runtime, "large", 5, tokens=4 * TOKENS)
    with load(store, disk_gb=0.0012) as runtime:
        go_on(runtime, "large")
    assert "more than its cap of 1200000, in saved sessions" in caplog.text
    assert "raise disk_gb or remove sessions" in caplog.text


def test_who_comes_second_is_told_what_others_take(store: Path, caplog: pytest.LogCaptureFixture) -> None:
    cap = 3 * MB
    with load(store, disk_gb=cap / 1e9) as one:
        read(one, 1, tokens=3 * TOKENS)
        assert caplog.text == ""
        with load(store, dtype="bfloat16", disk_gb=cap / 1e9) as other:
            said = f"one cap of {cap} bytes: other folders of it that are in use take "
            assert said in caplog.text
            assert other.plan.disk_bytes < cap / 2
            read(other, 1, 2, 3)
            read(one, 4, 5)
            assert taken(store) <= cap
        one.store.check_integrity()


def test_where_nothing_is_left_a_conversation_stays_in_memory(store: Path, caplog: pytest.LogCaptureFixture) -> None:
    cap = 2 * MB
    with load(store, disk_gb=cap / 1e9) as one:
        assert one.store.disk is not None
        one.store.disk.claim(cap)
        with load(store, dtype="bfloat16", disk_gb=cap / 1e9) as other:
            assert "going on in memory, nothing is kept; to keep something raise disk_gb" in caplog.text
            chat = read(other, 1)
            assert chat.send("? k2", max_new_tokens=2).text
            with pytest.raises(SessionError, match="the store had no room for it"):
                chat.save("mine")
    assert taken(store) <= cap


def test_where_the_disk_has_no_room_memory_may_have(store: Path) -> None:
    with load(store, disk_gb=0.0011) as runtime:
        chat = read(runtime, 1, tokens=4 * TOKENS)
        assert chat.send("? k2", max_new_tokens=40, ignore_eos=True).usage.completion_tokens == 40
        with pytest.raises(SessionError, match=r"is full: cap \d+ bytes; raise disk_gb$"):
            chat.save("mine")
    with (
        load(store, disk_gb=0.0011, host_gb=0.0035) as runtime,
        pytest.raises(DoesNotFitError, match=r"disk 0\.0011 GB .* raise disk_gb$"),
    ):
        read(runtime, 2, tokens=6 * TOKENS)


# Folders that an updated model left


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return shutil.copytree(RECALL, tmp_path / "model")


def test_what_an_update_left_is_shown_and_taken_first(store: Path, model: Path) -> None:
    cap = {"disk_gb": 2.2 * MB / 1e9}
    with load(store, **cap, dtype="bfloat16") as runtime:
        read(runtime, 1)
    with load(store, model, **cap) as runtime:
        save(runtime, "old", 1, tokens=TOKENS // 2)
        read(runtime, 2, 3)
    (left,) = [folder for folder in store_folders(store) if folder.name.startswith("model_")]
    updated(model, 4)
    with load(store, model, **cap) as runtime:
        assert is_left_behind(left)
        assert "left by an earlier version" in sessions(store, "list")
        read(runtime, 4, 5)
        assert runtime.store.disk is not None
        assert taken(store) <= 2.2 * MB
    with load(store, **cap, dtype="bfloat16") as runtime:
        assert runtime.chat().read_text(text(1)).cached > TOKENS // 2, "used before it, but still of use"
    assert "old" in sessions(store, "list", "-m", str(model))
    assert "what stays of it are the sessions old" in sessions(store, "gc")
    updated(model, 6)  # as it was
    with load(store, model, **cap) as runtime:
        assert not is_left_behind(left)
        go_on(runtime, "old")
        assert runtime.chat().read_text(text(2)).cached == 0


def test_a_folder_with_another_name_is_not_left(store: Path, model: Path) -> None:
    copy = shutil.copytree(model, model.parent / "copy")
    for spelling in (model, copy):
        with load(store, spelling, disk_gb=0.01) as runtime:
            read(runtime, 1)
    (folder,) = store_folders(store)
    updated(model, 4)
    with load(store, model, disk_gb=0.01):
        assert not is_left_behind(folder)
    updated(copy, 4)
    with load(store, copy, disk_gb=0.01):
        assert is_left_behind(folder)


def test_another_dtype_or_codec_is_no_update(store: Path, model: Path) -> None:
    for kind in KINDS:
        with load(store, model, disk_gb=0.01, **kind):
            pass
    assert not any(map(is_left_behind, store_folders(store)))
    assert "left by" not in sessions(store, "list")


def test_gc_to_a_size_takes_what_an_update_left_first(store: Path, model: Path) -> None:
    with load(store, model, disk_gb=0.01) as runtime:
        save(runtime, "old", 1)
    updated(model, 4)
    with load(store, model, disk_gb=0.01) as runtime:
        save(runtime, "new", 1)
    with load(store, model, disk_gb=0.01, dtype="bfloat16") as runtime:
        save(runtime, "other", 1)
    said = sessions(store, "gc", "--max-gb", str(0.7 * taken(store) / 1e9))
    assert "removed session old" in said
    assert "new" not in said
    assert "other" not in said


def test_the_plan_names_what_is_in_the_store_and_changes_nothing(store: Path, model: Path) -> None:
    with load(store, model, disk_gb=0.01) as runtime:
        read(runtime, 1, 2)
    updated(model, 4)
    with load(store, model, disk_gb=0.01):
        pass
    before = {path: path.stat().st_mtime_ns for path in store.rglob("*")}
    where = ["-m", str(model), "--dtype", "float32", "--disk-kv-gb", "0.001", "--kv-dir", str(store)]
    shown = CliRunner().invoke(app, ["plan", "100", *where])
    assert shown.exit_code == 0, shown.output
    assert f"MB {model} · float32 · left by an earlier version of the model" in shown.stdout
    assert f"MB {model} · float32\n" in shown.stdout
    assert {path: path.stat().st_mtime_ns for path in store.rglob("*")} == before
