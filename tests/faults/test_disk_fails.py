"""The disk is full, broken, read-only or gone: the conversation goes on in memory, says so, and is saved later.

Read errors of the device are not among these: LMDB reads through a memory map, where they end the process
(SIGBUS), as they do every program that maps its files.
"""

from __future__ import annotations

import logging
import os
import resource
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest
from children import Say, child
from conversations import HOST_GB, State, begin, document, load, state_of, take_turn, untroubled
from faults import NOBODY, FailingDisk, as_nobody, no_file_may_grow
from kv_pages import disk_tier

from stratakv.runtime import Chat, Runtime, SessionError
from stratakv.runtime.sessions.saved import StoreFolder, store_folders
from stratakv.storage import StorageFullError, StoreUnavailableError

SEED = 3


@pytest.fixture(scope="module")
def expected(tiny_llama: Path) -> list[State]:
    with load(tiny_llama, None) as runtime:
        return untroubled(runtime, SEED)


def can_mount() -> bool:
    with tempfile.TemporaryDirectory() as folder:
        if subprocess.run(["mount", "-t", "tmpfs", "tmpfs", folder], capture_output=True).returncode:
            return False
        subprocess.run(["umount", folder], check=True)
    return True


@contextmanager
def limited(store: Path) -> Iterator[AbstractContextManager[None]]:
    """A file size limit, as `ulimit -f`, stands for the full disk."""
    store.mkdir()

    @contextmanager
    def full() -> Iterator[None]:
        (folder,) = store_folders(store)
        with no_file_may_grow((folder / "data.mdb").stat().st_size):
            yield

    yield full()


@contextmanager
def small_file_system(store: Path) -> Iterator[AbstractContextManager[None]]:
    """A real one, filled up by another file."""
    store.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", store], check=True)

    @contextmanager
    def full() -> Iterator[None]:
        blocks = os.statvfs(store)
        (store / "filler").write_bytes(bytes(blocks.f_bavail * blocks.f_frsize))
        yield
        (store / "filler").unlink()

    try:
        yield full()
    finally:
        subprocess.run(["umount", store], check=True)


DISKS = [limited, small_file_system] if os.geteuid() == 0 and can_mount() else [limited]


@pytest.mark.parametrize("disk", DISKS)
def test_a_full_disk(
    tiny_llama: Path, tmp_path: Path, expected: list[State], disk: object, caplog: pytest.LogCaptureFixture
) -> None:
    """Nothing is lost, nothing half-stored, and saving works again without a restart."""
    store = tmp_path / "kv"
    assert callable(disk)
    with disk(store) as full:
        with load(tiny_llama, store) as runtime:
            chat = begin(runtime, SEED)
            take_turn(chat, SEED, 0)
            chat.save("early")
            with full, caplog.at_level(logging.WARNING):
                take_turn(chat, SEED, 1)
                with pytest.raises(SessionError, match=r"'late' was not saved: .* bytes are free on that file system"):
                    chat.save("late")
                assert "pages stay in host memory" in caplog.text
                assert "File too large" in str(runtime.stats()["disk_error"]) or "space" in caplog.text
                take_turn(chat, SEED, 2)
                assert state_of(chat) == expected[2]
                assert runtime.sessions() == ["early"]
                assert state_of(runtime.chat(session="early")) == expected[0]
            chat.save("late")
            assert runtime.stats()["disk_error"] is None
            runtime.store.check_integrity()
        with load(tiny_llama, store) as runtime:
            assert state_of(runtime.chat(session="late")) == expected[2]
            assert state_of(runtime.chat(session="early")) == expected[0]
        (folder,) = store_folders(store)
        with StoreFolder(folder) as opened:
            assert list(opened.damage()) == []


def test_a_prompt_is_read_though_what_it_leaves_cannot_be_stored(
    tiny_gemma: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Sliding layers leave their state for whoever reads the same prompt again: after the prompt, so its failure
    may not take the prompt back."""

    def refuse(chain: bytes, payload: bytes) -> None:
        raise StorageFullError("the disk is full")

    with load(tiny_gemma, tmp_path) as runtime:
        monkeypatch.setattr(runtime.store.disk, "put_state", refuse)
        assert runtime.chat().read_text("The keeper hid the letter. " * 40).tokens > 1000
    assert "what this prompt leaves for later ones is not stored: the disk is full" in caplog.text


@pytest.mark.parametrize("is_meta", [False, True], ids=["data", "meta page"])
def test_commits_that_fail(
    tiny_llama: Path, tmp_path: Path, expected: list[State], is_meta: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once, and for a while: a save that failed is not reported done, and the file is opened again. What was
    cached stays: there is room enough."""
    disk = FailingDisk(monkeypatch)
    with load(tiny_llama, tmp_path) as runtime:
        unsaved = begin(runtime, SEED + 1)
        take_turn(unsaved, SEED + 1, 0)
        unsaved.close()
        chat = begin(runtime, SEED)
        for turn, failures in enumerate((1, 5)):
            take_turn(chat, SEED, turn)
            runtime.store.flush()
            opened = disk.num_opened
            disk.fail(failures, is_meta=is_meta)
            with pytest.raises(
                SessionError, match=r"Input/output error\); what was stored before is intact; \d+ bytes"
            ):
                chat.save(f"turn {turn}")
            assert disk.num_opened > opened
            assert f"turn {turn}" not in runtime.sessions()
            while disk.failures:
                with pytest.raises(SessionError, match="was not saved"):
                    chat.save(f"turn {turn}")
            chat.save(f"turn {turn}")
        runtime.store.check_integrity()
    with load(tiny_llama, tmp_path) as runtime:
        assert begin(runtime, SEED + 1).read_text(document(SEED + 1)).cached > 800
        assert runtime.sessions() == ["turn 0", "turn 1"]
        assert [state_of(runtime.chat(session=name)) for name in runtime.sessions()] == expected[:2]


def test_a_chat_in_too_little_memory_goes_on_when_the_disk_comes_back(
    tiny_llama: Path, tmp_path: Path, expected: list[State], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pages that cannot be written may not leave memory: when it is full, the disk is tried again."""
    disk = FailingDisk(monkeypatch)
    with load(tiny_llama, tmp_path, host_gb=HOST_GB) as runtime:
        chat = begin(runtime, SEED)
        disk.fail(1)
        for turn in range(4):
            take_turn(chat, SEED, turn)
        assert not disk.failures
        other = begin(runtime, SEED + 1)
        take_turn(other, SEED + 1, 0)
        assert runtime.stats()["disk_error"] is None
        assert state_of(chat) == expected[3]
        runtime.store.check_integrity()


def test_the_writer_finds_out_by_itself_that_the_disk_works_again(
    tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("stratakv.storage.transfer.write_behind._RETRY_S", 0.05)
    disk = FailingDisk(monkeypatch)
    with load(tiny_llama, tmp_path) as runtime:
        disk.fail(2)
        take_turn(begin(runtime, SEED), SEED, 0)
        store = runtime.store
        with store._lock:
            assert store._lock.wait_for(lambda: store.counters.pages_written > 100, timeout=30)
        assert not disk.failures
        assert store.disk_error is None


@pytest.mark.parametrize("is_replaced", [False, True])
def test_a_removed_store_costs_the_saving_only(
    tiny_llama: Path, tmp_path: Path, expected: list[State], is_replaced: bool
) -> None:
    """A commit to a file that has no name any more would be reported and lost."""
    store, before = tmp_path / "kv", tmp_path / "before"
    load(tiny_llama, store).close()
    shutil.copytree(store, before)
    with load(tiny_llama, store) as runtime:
        chat = begin(runtime, SEED)
        take_turn(chat, SEED, 0)
        chat.save("early")
        shutil.rmtree(store)
        if is_replaced:
            shutil.copytree(before, store)
        take_turn(chat, SEED, 1)
        for _ in range(2):
            with pytest.raises(SessionError, match=r"was not saved: .*(No such file or directory|was acknowledged)"):
                chat.save("late")
        take_turn(chat, SEED, 2)
        assert state_of(chat) == expected[2]
    assert store.exists() == is_replaced
    with load(tiny_llama, store) as runtime:
        assert runtime.sessions() == []
        assert turns(begin(runtime, SEED), 3) == expected[2]


def turns(chat: Chat, count: int) -> State:
    for turn in range(count):
        take_turn(chat, SEED, turn)
    return state_of(chat)


def save_until_full(runtime: Runtime, chats: list[Chat]) -> None:
    for seed in range(20, 30):
        chats.append(begin(runtime, seed))
        take_turn(chats[-1], seed, 0)
        chats[-1].save(f"s{seed}")


def test_a_full_cap_gives_up_unsaved_prefixes_and_no_session(
    tiny_llama: Path, tmp_path: Path, expected: list[State]
) -> None:
    with load(tiny_llama, tmp_path, disk_gb=0.0022) as runtime:
        for seed in (SEED, *range(10, 14)):
            chat = begin(runtime, seed)
            take_turn(chat, seed, 0)
            if seed == SEED:
                chat.save("kept")
            chat.close()
        runtime.store.flush()
        disk = runtime.store.disk
        assert disk is not None
        assert disk.used_bytes <= disk.cap_bytes
        kept = runtime.chat(session="kept")
        assert kept.restored == kept.num_tokens
        assert state_of(kept) == expected[0]
        kept.close()
        chats: list[Chat] = []
        with pytest.raises(SessionError, match=r"is full: cap 2200000 bytes; raise disk_gb"):
            save_until_full(runtime, chats)
        take_turn(chats[-1], SEED, 1)
        *saved, refused = (f"s{seed}" for seed in range(20, 20 + len(chats)))
        assert runtime.sessions() == ["kept", *saved]
        assert refused not in runtime.sessions()
        for chat in chats:
            chat.close()
        assert disk.delete_session(saved[0])
        again = begin(runtime, 40)
        take_turn(again, 40, 0)
        again.save("again")
    with load(tiny_llama, tmp_path) as runtime:
        assert {"kept", "again"} <= set(runtime.sessions())
        for name in runtime.sessions():
            chat = runtime.chat(session=name)
            assert chat.restored == chat.num_tokens


def test_a_read_only_folder_says_what_to_change() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if os.geteuid() == 0:
            os.chown(folder, NOBODY, NOBODY)
        folder.chmod(stat.S_IRUSR | stat.S_IXUSR)
        with as_nobody(), pytest.raises(StoreUnavailableError, match=r"Permission denied.*\(path=\)"):
            disk_tier(folder / "kv")


@pytest.mark.parametrize("mode", [0o777, 0o750])
def test_a_folder_others_could_read_is_closed(tmp_path: Path, mode: int, caplog: pytest.LogCaptureFixture) -> None:
    disk_tier(tmp_path / "s").close()
    (tmp_path / "s").chmod(mode)
    for name in ("config.json", "data.mdb", "lock.mdb"):
        (tmp_path / "s" / name).chmod(mode)
    before = os.umask(0)
    try:
        disk = disk_tier(tmp_path / "s")
    finally:
        os.umask(before)
    assert "was open to other users; made private" in caplog.text
    for path in (tmp_path / "s", *(tmp_path / "s").iterdir()):
        assert not stat.S_IMODE(path.stat().st_mode) & 0o077, path
    disk.close()


@pytest.mark.forks
def test_too_little_address_space_for_the_map_says_what_to_change(tmp_path: Path) -> None:
    def open_it(say: Say, wait: object) -> None:
        resource.setrlimit(resource.RLIMIT_AS, (64 << 30, resource.getrlimit(resource.RLIMIT_AS)[1]))
        with pytest.raises(StoreUnavailableError, match=r"a map of \d+ bytes; lower disk_gb or raise `ulimit -v`"):
            disk_tier(tmp_path / "s", cap_bytes=1 << 40)
        disk_tier(tmp_path / "s", cap_bytes=1 << 20).close()
        say("opened")

    with child(open_it) as other:
        assert other.hear() == "opened"


def test_a_missing_parent_is_made_private_too(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        disk_tier(tmp_path / "a" / "b" / "s").close()
    finally:
        os.umask(before)
    assert {stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "a", tmp_path / "a" / "b")} == {0o700}


def test_another_users_folder_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Its owner could open it again."""
    (tmp_path / "s").mkdir()
    owner = (tmp_path / "s").stat().st_uid
    monkeypatch.setattr("os.geteuid", lambda: owner + 1)
    with pytest.raises(StoreUnavailableError, match=rf"belongs to user {owner}, this process runs as {owner + 1}"):
        disk_tier(tmp_path / "s")
    assert list((tmp_path / "s").iterdir()) == []
