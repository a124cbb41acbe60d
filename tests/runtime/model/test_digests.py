"""A file that was replaced is not taken for the one that was there, whatever its size and times say."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
from places import RECALL

from stratakv.runtime import KVConfig, ModelFileError, Runtime, SessionError
from stratakv.runtime.engine.profile import default_path
from stratakv.runtime.model import digests
from stratakv.runtime.model.digests import remembered, stamp
from stratakv.runtime.model.identity import model_digests, model_key
from stratakv.runtime.model.locate import cache_dir, file_digest
from stratakv.runtime.model.model import Model

pytestmark = pytest.mark.usefixtures("own_cache")

TEXT = " ".join(f"k{i % 128} v{7 * i % 128}" for i in range(60))
LONG_AGO = 1_700_000_000 * 10**9 + 123_456_789


@pytest.fixture
def settled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything that was written is long ago."""
    monkeypatch.setattr(digests, "time_ns", lambda: time.time_ns() + 10**10)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = shutil.copytree(RECALL, tmp_path / "model")
    os.utime(folder / "model.safetensors", ns=(LONG_AGO, LONG_AGO))
    return folder


def renamed(path: Path, content: bytes) -> None:
    (path.parent / "new").write_bytes(content)
    os.replace(path.parent / "new", path)


def written_over(path: Path, content: bytes) -> None:
    with path.open("r+b") as file:
        file.write(content)


def hard_linked(path: Path, content: bytes) -> None:
    (path.parent / "elsewhere").write_bytes(content)
    path.unlink()
    os.link(path.parent / "elsewhere", path)


def linked_to_another(path: Path, content: bytes) -> None:
    """As the hub's cache does it: a name that points to one of several blobs."""
    (path.parent / "blob").write_bytes(content)
    os.utime(path.parent / "blob", ns=(LONG_AGO, LONG_AGO))
    path.unlink()
    path.symlink_to("blob")


def copied_tree(path: Path, content: bytes) -> None:
    """Another folder takes the place of the whole one, times and all."""
    made = path.parent.with_name("made")
    shutil.copytree(path.parent, made)
    (made / path.name).write_bytes(content)
    os.utime(made / path.name, ns=(LONG_AGO, LONG_AGO))
    shutil.rmtree(path.parent)
    shutil.move(made, path.parent)


HOW: dict[str, Callable[[Path, bytes], None]] = {
    one.__name__: one for one in (renamed, written_over, hard_linked, linked_to_another, copied_tree)
}


def replace(path: Path, content: bytes, how: Callable[[Path, bytes], None] = renamed) -> None:
    """The file has other bytes now, and the size and modification time it had."""
    before = path.stat()
    assert len(content) == before.st_size
    assert content != path.read_bytes()
    how(path, content)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    after = path.stat()
    assert (after.st_size, after.st_mtime_ns) == (before.st_size, before.st_mtime_ns)


def flipped(path: Path) -> bytes:
    """The same file with one bit of its last number changed."""
    found = bytearray(path.read_bytes())
    found[-1] ^= 1
    return bytes(found)


@pytest.mark.usefixtures("settled")
@pytest.mark.parametrize("how", HOW.values(), ids=HOW)
@pytest.mark.parametrize(
    "digest", [model_key, lambda folder: file_digest(folder / "model.safetensors")], ids=["tensors", "bytes"]
)
def test_a_file_replaced_by_one_of_equal_size_and_time(
    model: Path, how: Callable[[Path, bytes], None], digest: Callable[[Path], str]
) -> None:
    first = digest(model)
    assert digest(model) == first
    replace(model / "model.safetensors", flipped(model / "model.safetensors"), how)
    assert digest(model) != first


@pytest.mark.usefixtures("settled")
def test_one_shard_of_two_is_replaced(model: Path) -> None:
    tensors = safetensors.torch.load_file(model / "model.safetensors")
    names = sorted(tensors)
    where = {name: f"model-{1 + (n % 2)}.safetensors" for n, name in enumerate(names)}
    for file in set(where.values()):
        safetensors.torch.save_file({name: tensors[name] for name in names if where[name] == file}, model / file)
    (model / "model.safetensors.index.json").write_text(json.dumps({"weight_map": where}))
    (model / "model.safetensors").unlink()
    first = model_key(model)
    replace(model / "model-2.safetensors", flipped(model / "model-2.safetensors"))
    assert model_key(model) != first


@pytest.mark.usefixtures("settled")
def test_a_profile_is_not_the_replaced_models(model: Path) -> None:
    first = default_path(model)
    for name in ("model.safetensors", "config.json", "tokenizer.json"):
        before = model_digests(model)
        text = (model / name).read_bytes()
        other = flipped(model / name) if name == "model.safetensors" else text.replace(b" 1", b" 2", 1)
        replace(model / name, other if other != text else text.replace(b"1", b"2", 1))
        assert model_digests(model) != before, name
    assert default_path(model) != first


def test_pages_of_the_model_that_was_there_are_not_read(model: Path, tmp_path: Path, settled: None) -> None:
    kv = KVConfig(path=tmp_path / "kv", host_gb=0.05, disk_gb=0.05)
    cached = []
    for change in (False, False, True, False):
        if change:
            replace(model / "model.safetensors", flipped(model / "model.safetensors"))
        with Runtime.load(model, kv=kv) as runtime:
            read = runtime.chat().read_text(TEXT)
            cached.append(read.cached)
    assert cached[0] == cached[2] == 0
    assert cached[1] == cached[3] > 100


def test_a_model_replaced_while_it_is_read_is_refused(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load = Model.load

    def slowly(*arguments: Any, **named: Any) -> Model:
        loaded = load(*arguments, **named)
        replace(model / "model.safetensors", flipped(model / "model.safetensors"))
        return loaded

    monkeypatch.setattr(Model, "load", slowly)
    kv = KVConfig(path=tmp_path / "kv", host_gb=0.05, disk_gb=0.05)
    with pytest.raises(ModelFileError, match="was replaced while it was read; load it again"):
        Runtime.load(model, kv=kv)
    monkeypatch.setattr(Model, "load", load)
    Runtime.load(model, kv=kv).close()


def test_a_model_written_to_while_it_is_in_use_stores_nothing_more(
    model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Its weights are mapped: what it computes from then on is neither model's."""
    path, store = model / "model.safetensors", tmp_path / "kv"
    whole = path.read_bytes()
    other = whole[: len(whole) // 2] + bytes(len(whole) - len(whole) // 2)
    with Runtime.load(model, dtype="float32", kv=KVConfig(path=store, host_gb=0.05, disk_gb=0.05)) as runtime:
        written_over(path, other)
        chat = runtime.chat()
        chat.read_text(TEXT)
        with pytest.raises(SessionError, match="was written to while the model was in use"):
            chat.save("s")
    assert "pages stay in host memory" in caplog.text
    written_over(path, whole)
    with Runtime.load(model, dtype="float32", kv=KVConfig(path=store, host_gb=0.05, disk_gb=0.05)) as runtime:
        assert runtime.chat().read_text(TEXT).cached == 0
        renamed(path, other)
        chat = runtime.chat()
        chat.read_text(TEXT)
        chat.save("what is mapped is still there")
        assert runtime.sessions() == ["what is mapped is still there"]


@pytest.mark.usefixtures("settled")
def test_the_same_bytes_written_again_are_the_same_model(model: Path, tmp_path: Path) -> None:
    path = model / "model.safetensors"
    with Runtime.load(model, kv=KVConfig(path=tmp_path / "kv", host_gb=0.05, disk_gb=0.05)) as runtime:
        written_over(path, path.read_bytes())
        path.chmod(0o400)
        chat = runtime.chat()
        chat.read_text(TEXT)
        chat.save("s")
        path.unlink()
        chat.save("t")
        assert runtime.sessions() == ["s", "t"]


def test_what_was_not_remembered_is_changed_by_any_change(model: Path, tmp_path: Path) -> None:
    """Of a file that was new, or whose file system has no clock: it is not read once more only to compare it later."""
    with Runtime.load(model, kv=KVConfig(path=tmp_path / "kv", host_gb=0.05, disk_gb=0.05)) as runtime:
        chat = runtime.chat()
        chat.save("s")
        (model / "model.safetensors").chmod(0o400)
        with pytest.raises(SessionError, match="was written to"):
            chat.save("t")


class Counted:
    """A digest that counts how often it is computed, over a file whose times a file system made up."""

    def __init__(self, folder: Path) -> None:
        self.path, self.memo, self.times = folder / "file", folder / "memo.json", 0
        self.path.write_bytes(b"weights")

    def __call__(self, kind: str = "") -> str:
        return remembered(self.memo, self.path, kind, self._compute)

    def _compute(self, path: Path) -> str:
        self.times += 1
        return path.read_text()


@pytest.fixture
def counted(tmp_path: Path) -> Counted:
    return Counted(tmp_path)


@pytest.mark.usefixtures("settled")
def test_a_settled_file_is_read_once_for_each_kind(counted: Counted) -> None:
    assert [counted(), counted(), counted("other"), counted("other")] == ["weights"] * 4
    assert counted.times == 2


def test_a_file_changed_a_moment_ago_is_read_again(counted: Counted, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another change might have left the same times."""
    changed = stamp(counted.path)[-1]
    for after, times in ((0, 1), (1, 2), (2 * 10**9, 3), (2 * 10**9 + 1, 4), (0, 4), (-(10**9), 4)):
        monkeypatch.setattr(digests, "time_ns", lambda after=after: changed + after)
        assert counted() == "weights"
        assert counted.times == times


@pytest.mark.usefixtures("settled")
def test_times_that_a_file_system_made_up_are_not_believed(counted: Counted, monkeypatch: pytest.MonkeyPatch) -> None:
    """An image whose files all have one time: mounted in another's place, nothing tells its files from the other's."""
    monkeypatch.setattr(digests, "stamp", lambda path: (2, 7, 10**18, 10**18))
    assert counted() == "weights"
    counted.path.write_bytes(b"another")
    assert counted() == "another"


@pytest.mark.usefixtures("settled")
def test_a_file_changed_while_it_is_read_is_not_remembered(counted: Counted) -> None:
    def slowly(path: Path) -> str:
        found = path.read_text()
        renamed(path, b"another")
        return found

    assert remembered(counted.memo, counted.path, "", slowly) == "weights"
    assert counted() == "another"


@pytest.mark.usefixtures("settled")
@pytest.mark.parametrize(
    "said", ["{", "[1]", "[" * 100_000, '{":PATH": 7}', '{":PATH": [[1, 2], 3]}', '{":PATH": [[], ""]}']
)
def test_a_memo_that_says_nothing_is_written_anew(counted: Counted, said: str) -> None:
    counted.memo.write_text(said.replace("PATH", str(counted.path)))
    assert [counted(), counted()] == ["weights"] * 2
    assert counted.times == 1


@pytest.mark.usefixtures("settled")
def test_what_other_versions_remember_is_kept_and_not_believed(model: Path) -> None:
    path = model / "model.safetensors"
    status, memo = path.stat(), cache_dir() / "models" / "digests.json"
    theirs = {f"{path}:{status.st_size}:{status.st_mtime_ns}": "00", "later": {"a": 1}}
    memo.parent.mkdir(parents=True)
    memo.write_text(json.dumps(theirs))
    assert file_digest(path) != "00"
    assert json.loads(memo.read_text()).items() > theirs.items()
