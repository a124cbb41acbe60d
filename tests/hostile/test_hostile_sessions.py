"""Session and state records whose checksum is right and whose content is hostile: refused by name, or built again."""

from __future__ import annotations

import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hostile import by_hand, plant
from payloads import Payload
from tiny_models import save_tiny_model
from typer.testing import CliRunner

from stratakv.runtime import KVConfig, Runtime, SessionError
from stratakv.runtime.cli.app import app
from stratakv.runtime.sessions.saved import StoreFolder

TEXT = "The lighthouse keeper wrote the log every evening, and hid the letter under the lamp. " * 9
QUESTION = "Who wrote the log?"
LAYER = "layer.1."


def _header(**changes: Any) -> Callable[[Payload], None]:
    return lambda payload: payload.header.update(changes)


def _notes(**changes: Any) -> Callable[[Payload], None]:
    return lambda payload: payload.header["notes"].update(changes)


def _entry(name: str, **changes: Any) -> Callable[[Payload], None]:
    return lambda payload: payload.layout[name].update(changes)


def _fill(name: str, value: bytes) -> Callable[[Payload], None]:
    return lambda payload: payload.fill(name, value)


def _whole(**changes: Any) -> Callable[[Payload], None]:
    return lambda payload: payload.__dict__.update(changes)


def _renamed(payload: Payload) -> None:
    payload.layout["layer.99.tail"] = payload.layout.pop(f"{LAYER}tail")


HOSTILE: dict[str, tuple[Callable[[Payload], None], str]] = {
    "pages beyond number": (_header(num_pages=2**40), "num_pages"),
    "pages beyond 64 bits": (_header(num_pages=2**4000), "num_pages"),
    "fewer pages": (_header(num_pages=-1), "num_pages"),
    "pages of another kind": (_header(num_pages=True), "num_pages"),
    "another version": (_header(version=[2]), "version"),
    "index no text": (_header(index={"a": 1}), "index"),
    "index an escape": (_header(index="\x1b[2J"), "index"),
    "notes no object": (_header(notes=[1]), "notes"),
    "saved never": (_header(saved_at=float("nan")), "saved_at"),
    "saved in year 10^300": (_header(saved_at=1e300), "saved_at"),
    "no header": (_whole(header=7), "header"),
    "no metadata": (_whole(metadata={"index": "x"}, header=None), "header"),
    "messages no list": (_notes(messages="hello"), "notes.messages"),
    "a message without text": (_notes(messages=[{"role": "user"}]), "notes.messages"),
    "a message with a number": (_notes(messages=[{"role": "user", "content": 7}]), "notes.messages"),
    "an unknown role": (_notes(messages=[{"role": "root", "content": "x"}]), "notes.messages"),
    "system no text": (_notes(system=7), "notes.system"),
    "unfed no ids": (_notes(unfed=["a"]), "notes.unfed"),
    "unfed beyond the vocabulary": (_notes(unfed=[10**9]), "notes.unfed"),
    "unfed beyond the window": (_notes(unfed=[1] * 5000), "notes.unfed"),
    "tokens of another kind": (_entry("tokens", dtype="F64"), "tokens"),
    "tokens of an unknown kind": (_entry("tokens", dtype="Q7"), "tokens"),
    "tokens a matrix": (_entry("tokens", shape=[1, 2**40]), "tokens"),
    "tokens of no shape": (_entry("tokens", shape=None), "tokens"),
    "tokens elsewhere": (_entry("tokens", data_offsets=[2**60, 2**60 + 8]), "tokens"),
    "ids beyond the vocabulary": (_fill("tokens", struct.pack("<q", 10**9)), "tokens"),
    "negative ids": (_fill("tokens", struct.pack("<q", -1)), "tokens"),
    "no tokens": (lambda payload: payload.drop("tokens"), "tokens"),
    "no origins": (lambda payload: payload.drop("origins"), "origins"),
    "origins beyond 1": (_fill("origins", b"\7"), "origins"),
    "one chain for all": (_fill("chains", b"\7"), "num_pages"),
    "no tail": (lambda payload: payload.drop(f"{LAYER}tail"), f"{LAYER}tail"),
    "a tail that is not finite": (_fill(f"{LAYER}tail", struct.pack("<f", float("nan"))), f"{LAYER}tail"),
    "a tail of another layer": (_renamed, "tail"),
    "a tail turned": (
        lambda payload: payload.layout[f"{LAYER}tail"]["shape"].reverse(), f"{LAYER}tail",
    ),
    "bytes left over": (lambda payload: payload.data.extend(bytes(9)), "tensors"),
    "bytes missing": (lambda payload: payload.data.__delitem__(slice(-9, None)), "tensors"),
}  # fmt: skip


def load(model: Path, store: Path, **changes: Any) -> Runtime:
    settings: dict[str, Any] = {"index": "bounds", "budget": 112, "local": 32, "host_gb": 0.01, "disk_gb": 0.05}
    return Runtime.load(model, dtype="float32", kv=KVConfig(path=store, **settings | changes))


def folder_of(store: Path) -> Path:
    (folder,) = (path for path in store.iterdir() if path.is_dir())
    return folder


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory, tiny_llama: Path) -> tuple[Path, bytes, list[int]]:
    """A store with a session, the session's payload, and what it answers next."""
    store = tmp_path_factory.mktemp("hostile-sessions") / "kv"
    with load(tiny_llama, store) as runtime:
        chat = runtime.chat()
        chat.read_text(TEXT)
        chat.save("keeper")
        tokens = chat.send(QUESTION, max_new_tokens=8, ignore_eos=True).tokens
    with StoreFolder(folder_of(store)) as folder:
        payload = folder.disk.get_session("keeper")
    assert payload is not None
    return store, payload, tokens


@pytest.fixture(scope="module")
def open_runtime(saved: tuple[Path, bytes, list[int]], tiny_llama: Path) -> Any:
    with load(tiny_llama, saved[0]) as runtime:
        yield runtime


def changed(payload: bytes, change: Callable[[Payload], None]) -> bytes:
    found = Payload(payload)
    change(found)
    return found.bytes()


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_content_is_refused_by_name(
    name: str, saved: tuple[Path, bytes, list[int]], open_runtime: Runtime
) -> None:
    _, payload, tokens = saved
    change, field = HOSTILE[name]
    disk = open_runtime.store.disk
    assert disk is not None
    disk.put_session("keeper", changed(payload, change))
    with pytest.raises(SessionError, match="'keeper' is damaged") as caught:
        open_runtime.chat(session="keeper")
    message = str(caught.value)
    assert f"{field}" in message
    assert "stratakv sessions rm keeper" in message
    assert message.isprintable()
    assert len(message) < 400
    disk.put_session("keeper", payload)
    chat = open_runtime.chat(session="keeper")
    assert chat.send(QUESTION, max_new_tokens=8, ignore_eos=True).tokens == tokens
    chat.close()
    open_runtime.store.check_integrity()


def test_the_commands_live_with_hostile_records(saved: tuple[Path, bytes, list[int]], tmp_path: Path) -> None:
    store, payload = shutil.copytree(saved[0], tmp_path / "kv"), saved[1]
    folder, run = folder_of(store), CliRunner()
    with StoreFolder(folder) as opened:
        opened.disk.put_session("evil", changed(payload, _header(num_pages=2**40)))
        opened.disk.put_session("old", changed(payload, _header(saved_at=1e300)))
    plant(folder, b"sessions", b"\xff\xfe\x1b[2J", by_hand())
    plant(folder, b"sessions", b"../../escape", by_hand())
    (folder / "config.json").write_text('{"model": "\\u001b[2J", "layout": [1], "dtype": {"a": 1}}')

    def do(*words: str) -> Any:
        return run.invoke(app, ["sessions", *words, "--kv-dir", str(store)])

    listed = do("list")
    assert listed.exit_code == 0
    assert "damaged: num_pages" in listed.output
    assert "keeper " in listed.output
    assert "\x1b" not in listed.output
    assert do("show", "keeper").exit_code == 0
    assert do("show", "evil").exit_code == 2
    checked = do("verify")
    assert checked.exit_code == 1
    assert "no session can be called that" in checked.output
    assert do("rm", "evil").exit_code == 0
    assert do("rm", "old").exit_code == 0
    assert do("gc").exit_code == 0
    assert "0 damaged or missing" in do("verify").output


def test_a_key_that_is_no_name_hides_no_session(
    saved: tuple[Path, bytes, list[int]], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = shutil.copytree(saved[0], tmp_path / "kv")
    plant(folder_of(store), b"sessions", b"\xff", b"")
    with StoreFolder(folder_of(store)) as folder:
        assert folder.disk.session_names() == ["keeper"]
        assert "1 session records have no name" in caplog.text
        assert folder.disk.delete_nameless() == 1
        assert folder.disk.nameless_sessions() == []


@pytest.mark.parametrize(
    "change",
    [
        _fill(f"{LAYER}index.bounds", struct.pack("<f", float("inf"))),
        lambda payload: payload.drop(f"{LAYER}index.bounds"),
        lambda payload: payload.layout[f"{LAYER}index.bounds"]["shape"].reverse(),
    ],
    ids=["infinite", "missing", "turned"],
)
def test_a_hostile_index_state_is_built_again(
    change: Callable[[Payload], None], saved: tuple[Path, bytes, list[int]], open_runtime: Runtime,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    _, payload, tokens = saved
    disk = open_runtime.store.disk
    assert disk is not None
    disk.put_session("keeper", changed(payload, change))
    chat = open_runtime.chat(session="keeper")
    assert "layer 1: the index's state is not used" in caplog.text
    assert chat.send(QUESTION, max_new_tokens=8, ignore_eos=True).tokens == tokens
    chat.close()
    disk.put_session("keeper", payload)


@pytest.mark.parametrize(("family", "index"), [("gemma3_text", "bounds"), ("llama", "spectral")])
def test_a_hostile_state_is_not_used(tmp_path: Path, family: str, index: str, caplog: pytest.LogCaptureFixture) -> None:
    """What a prompt left for the next one that begins so: the answer is the same, computed again."""
    model, store = save_tiny_model(tmp_path / "model", family), tmp_path / "kv"

    def answer() -> list[int]:
        with load(model, store, index=index) as runtime:
            chat = runtime.chat()
            chat.read_text(TEXT)
            return chat.send(QUESTION, max_new_tokens=8, ignore_eos=True).tokens

    answer()
    with StoreFolder(folder_of(store)) as folder:
        chains = list(folder.disk._records.keys("states"))
        whole = {chain: folder.disk.get_state(chain) for chain in chains}
        folder.disk._records.delete("states", chains)
    assert chains
    expected = answer()
    for change in (_shortened, _not_finite, _no_tensors):
        with StoreFolder(folder_of(store)) as folder:
            for chain, payload in whole.items():
                assert payload is not None
                folder.disk.put_state(chain, changed(payload, change))
        caplog.clear()
        assert answer() == expected
        assert "not used" in caplog.text, change.__name__


def _shortened(payload: Payload) -> None:
    for entry in payload.layout.values():
        entry["shape"] = [*entry["shape"][::-1], 1]


def _not_finite(payload: Payload) -> None:
    for name in payload.layout:
        payload.fill(name, struct.pack("<f", float("nan")))


def _no_tensors(payload: Payload) -> None:
    for entry in payload.layout.values():
        entry["data_offsets"] = [2**50, 0]
