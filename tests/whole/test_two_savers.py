"""Who saves over another's session is told; what a conversation was set to comes back with it."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from payloads import Payload
from places import RECALL

from stratakv.runtime import Chat, GenerationConfig, KVConfig, Runtime, SessionError
from stratakv.runtime.sessions.saved import StoreFolder, store_folders
from stratakv.storage import SessionChangedError, StorageFullError


@pytest.fixture
def open_two(tmp_path: Path) -> Iterator[tuple[Runtime, Runtime]]:
    """Two runtimes on one store, as two processes would have them."""
    kv = KVConfig(path=tmp_path / "kv", host_gb=0.02, disk_gb=0.05)
    with Runtime.load(RECALL, dtype="float32", kv=kv) as one, Runtime.load(RECALL, dtype="float32", kv=kv) as two:
        yield one, two


def conversation(runtime: Runtime, text: str = "k1 v1") -> Chat:
    chat = runtime.chat()
    chat.read_text(text)
    return chat


def put(runtime: Runtime, name: str) -> int:
    """Somebody else saves so many tokens."""
    chat = conversation(runtime, "k7 v7 k8 v8")
    chat.save(name)
    return chat.num_tokens


def transcript(runtime: Runtime, name: str) -> int:
    chat = runtime.chat(session=name)
    try:
        return chat.num_tokens
    finally:
        chat.close()


# Who may replace what


def test_what_somebody_else_saved_meanwhile_is_not_replaced(open_two: tuple[Runtime, Runtime]) -> None:
    one, two = open_two
    mine = conversation(one)
    mine.save("s")
    theirs = two.chat(session="s")
    theirs.read_text("k2 v2 k3 v3")
    theirs.save("s")
    mine.read_text("k4 v4")
    with pytest.raises(SessionError) as caught:
        mine.save("s")
    message = str(caught.value)
    assert f"({theirs.num_tokens} tokens saved 20" in message
    assert "save under another name, or with replace=True" in message
    assert transcript(one, "s") == theirs.num_tokens
    mine.save("s2")
    assert transcript(two, "s2") == mine.num_tokens
    mine.save("s", replace=True)
    assert transcript(two, "s") == mine.num_tokens
    with pytest.raises(SessionError, match="somebody else saved"):
        theirs.save("s")


def test_what_this_conversation_saved_or_loaded_is_replaced_as_often_as_it_likes(
    open_two: tuple[Runtime, Runtime], caplog: pytest.LogCaptureFixture
) -> None:
    one, _ = open_two
    chat = conversation(one)
    for name in ("a", "b", "a", "b", "a"):
        chat.save(name)
    resumed = one.chat(session="a")
    for _ in range(2):
        resumed.save("a")
    assert "takes the place" not in caplog.text


def test_a_new_conversation_replaces_what_it_finds_and_says_so(
    open_two: tuple[Runtime, Runtime], caplog: pytest.LogCaptureFixture
) -> None:
    """So that a script can be run twice."""
    one, two = open_two
    before = put(two, "s")
    chat = conversation(one)
    with caplog.at_level(logging.WARNING):
        chat.save("s")
    assert f"session 's' takes the place of another one of that name: {before} tokens saved 20" in caplog.text
    assert transcript(two, "s") == chat.num_tokens


def test_asking_first(open_two: tuple[Runtime, Runtime], caplog: pytest.LogCaptureFixture) -> None:
    one, two = open_two
    mine = conversation(one)
    assert mine.would_replace("s") is None
    theirs = put(two, "s")
    found = mine.would_replace("s")
    assert found is not None
    assert found.num_tokens == theirs
    assert found.saved_at is not None
    mine.save("s", replace=True)
    assert "takes the place" not in caplog.text, "it was asked for"
    assert mine.would_replace("s") is None
    put(two, "s")
    assert mine.would_replace("s") is not None
    for name in ("", "a/b"):
        with pytest.raises(SessionError, match="printable bytes"):
            mine.would_replace(name)


def test_a_damaged_session_is_asked_about_as_well(open_two: tuple[Runtime, Runtime]) -> None:
    one, _ = open_two
    assert one.store.disk is not None
    one.store.disk.put_session("s", b"damaged")
    chat = conversation(one)
    found = chat.would_replace("s")
    assert found is not None
    assert (found.num_tokens, found.saved_at) == (0, None)
    chat.save("s")
    assert transcript(one, "s") == chat.num_tokens


def test_a_session_deleted_meanwhile_is_saved_again(open_two: tuple[Runtime, Runtime]) -> None:
    one, two = open_two
    chat = conversation(one)
    chat.save("s")
    assert two.store.disk is not None
    two.store.disk.delete_session("s")
    assert chat.would_replace("s") is None
    chat.save("s")
    two.store.disk.delete_session("s")
    put(two, "s")
    with pytest.raises(SessionError, match="somebody else saved"):
        chat.save("s")


def test_a_fork_knows_what_its_original_knew(open_two: tuple[Runtime, Runtime]) -> None:
    one, _ = open_two
    chat = conversation(one)
    chat.save("s")
    fork = chat.fork()
    fork.save("s")
    with pytest.raises(SessionError, match="somebody else saved"):
        chat.save("s")


def test_between_the_look_and_the_write_somebody_saves(
    open_two: tuple[Runtime, Runtime], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Compared and written in one transaction, and looked at again: the warning names what was replaced in the end."""
    one, two = open_two
    disk = one.store.disk
    assert disk is not None
    honest, interruptions, theirs = disk.put_session, ["s"], []

    def put_later(name: str, payload: bytes, only_over: Any = None) -> bytes:
        if interruptions:
            theirs.append(put(two, interruptions.pop()))
        return honest(name, payload, only_over)

    monkeypatch.setattr(disk, "put_session", put_later)
    chat = conversation(one)
    chat.save("s")
    assert f"takes the place of another one of that name: {theirs[0]} tokens" in caplog.text
    interruptions.append("s")
    with pytest.raises(SessionError, match="somebody else saved"):
        chat.save("s")
    assert transcript(two, "s") != chat.num_tokens


def test_versions_are_compared_in_the_transaction_that_writes(open_two: tuple[Runtime, Runtime]) -> None:
    one, two = (runtime.store.disk for runtime in open_two)
    assert one is not None
    assert two is not None
    first = one.put_session("s", b"1", ())
    assert two.session_version("s") == first == one.version_of(b"1")
    second = two.put_session("s", b"2" * 100_000, {first})
    for stale in ((), {first}):
        with pytest.raises(SessionChangedError):
            one.put_session("s", b"3", stale)
    assert one.get_session("s") == b"2" * 100_000
    assert one.get_session_version("s") == (second, b"2" * 100_000)
    one.put_session("s", b"3")
    one.delete_session("s")
    assert one.session_version("s") is None
    one.put_session("s", b"4", {second})


@pytest.mark.parametrize("reached_the_disk", [False, True])
def test_a_write_that_failed_is_not_taken_for_somebody_elses(
    open_two: tuple[Runtime, Runtime], monkeypatch: pytest.MonkeyPatch, reached_the_disk: bool
) -> None:
    """Whether a commit that reports an error is on the disk all the same, nobody can tell before looking."""
    one, two = open_two
    put(two, "taken")
    disk, chats = one.store.disk, [conversation(one), conversation(one)]
    assert disk is not None
    chats[0].save("s")
    honest = disk.put_session

    def fail(name: str, payload: bytes, only_over: Any = None) -> bytes:
        if reached_the_disk:
            honest(name, payload, only_over)
        raise StorageFullError("the disk says no")

    for chat, name in zip(chats, ("s", "taken"), strict=True):
        with monkeypatch.context() as patch:
            patch.setattr(disk, "put_session", fail)
            with pytest.raises(SessionError, match="the disk says no"):
                chat.save(name)
        chat.save(name)
        assert transcript(two, name) == chat.num_tokens
        chat.save(name)


# What it was set to


def test_settings_come_back_with_the_conversation(open_two: tuple[Runtime, Runtime]) -> None:
    one, two = open_two
    chat = conversation(one)
    chat.generation = GenerationConfig(
        max_new_tokens=7, do_sample=True, temperature=0.3, stop_strings=("k1", "\n"), seed=5
    )
    chat.save("s")
    resumed = two.chat(session="s")
    assert resumed.generation == chat.generation
    assert len(resumed.send("? k1", ignore_eos=True, stop_strings=()).tokens) == 7
    conversation(one).save("plain")
    assert two.chat(session="plain").generation == GenerationConfig()


def edit(runtime: Runtime, name: str, change: Callable[[dict[str, Any]], None]) -> None:
    disk = runtime.store.disk
    assert disk is not None
    payload = disk.get_session(name)
    assert payload is not None
    found = Payload(payload)
    change(found.header["notes"])
    disk.put_session(name, found.bytes())


def test_a_session_of_an_earlier_version_has_the_defaults(open_two: tuple[Runtime, Runtime]) -> None:
    one, _ = open_two
    conversation(one).save("s")
    edit(one, "s", lambda notes: notes.pop("generation"))
    assert one.chat(session="s").generation == GenerationConfig()


HOSTILE: list[dict[str, Any]] = [
    {"temperature": "hot"}, {"temperature": -1}, {"temperature": True}, {"temperature": None},
    {"temperature": [0.5]}, {"top_p": 7}, {"top_k": 1.5}, {"max_new_tokens": 0}, {"max_new_tokens": None},
    {"seed": 2**64}, {"seed": "1"}, {"do_sample": "no"}, {"do_sample": 1},
    {"ignore_eos": {}}, {"stop_strings": "all"}, {"stop_strings": [1]},
    {"stop_strings": ["x"] * 5000}, {"of a later version": 1}, {"\x1b[2J": "\x1b[2J"},
    {"__class__": "x"},
]  # fmt: skip


@pytest.mark.parametrize("setting", HOSTILE, ids=lambda setting: ascii(setting)[:40])
def test_a_setting_that_is_none_of_ours_is_left_out(
    tmp_path: Path, setting: dict[str, Any], shared: Runtime, caplog: pytest.LogCaptureFixture
) -> None:
    edit(shared, "s", lambda notes: notes.update(generation={**setting, "top_k": setting.get("top_k", 3)}))
    chat = shared.chat(session="s")
    expected = GenerationConfig() if "top_k" in setting else GenerationConfig(top_k=3)
    assert chat.generation == expected
    assert "is not used" in caplog.text
    assert "\x1b" not in caplog.text
    chat.close()


@pytest.mark.parametrize("found", [[], "greedy", 1, None, True])
def test_settings_that_are_no_object_are_refused(shared: Runtime, found: Any) -> None:
    edit(shared, "s", lambda notes: notes.update(generation=found))
    with pytest.raises(SessionError, match=r"'s' is damaged \(notes\.generation"):
        shared.chat(session="s")
    edit(shared, "s", lambda notes: notes.update(generation={}))


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runtime]:
    kv = KVConfig(path=tmp_path_factory.mktemp("kv"), host_gb=0.02, disk_gb=0.05)
    with Runtime.load(RECALL, dtype="float32", kv=kv) as runtime:
        conversation(runtime).save("s")
        yield runtime


def test_the_record_says_what_it_is(tmp_path: Path, open_two: tuple[Runtime, Runtime]) -> None:
    """Readable by earlier versions: the same format, with two names more."""
    one, _ = open_two
    chat = conversation(one)
    chat.generation = GenerationConfig(top_k=3)
    chat.save("s")
    chat.save("t")
    (folder,) = store_folders(tmp_path / "kv")
    with StoreFolder(folder) as store:
        found = [Payload(store.disk.get_session(name) or b"") for name in ("s", "t")]
    assert [payload.header["version"] for payload in found] == [1, 1]
    assert found[0].header["id"] != found[1].header["id"]
    assert found[0].header["notes"]["generation"] == {"top_k": 3}
    assert json.dumps(found[0].header)
