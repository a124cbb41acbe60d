"""Two real processes on one store: writers, readers, leases, other caps and deaths."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import BinaryIO

import lmdb
import numpy as np
import pytest
from children import Say, child
from conversations import begin, load, take_turn
from faults import FailingDisk
from kv_pages import FINGERPRINT, LARGE, disk_tier, text

from stratakv.runtime import SessionError
from stratakv.runtime.sessions.home import find_home
from stratakv.runtime.sessions.saved import StoreFolder
from stratakv.storage import DiskTier, SessionChangedError, StorageFullError, StoreUnavailableError, page_key
from stratakv.storage.codecs import make_codec
from stratakv.storage.disk import record
from stratakv.storage.files.nameless import name_file

TEXT = text(LARGE, 200)
Wait = Callable[[], None]


def packed(page: int) -> tuple[bytes, bytes]:
    key = page_key(0, TEXT.chains[page])
    return key, record.pack(record.PAGE, FINGERPRINT, key, bytes_of(page), tokens=TEXT.tokens[page])


def bytes_of(page: int) -> bytes:
    return np.random.default_rng(page).bytes(LARGE.page_bytes)


def write(disk: DiskTier, pages: range) -> None:
    disk.write_pages([packed(page) for page in pages])


def num_good(disk: DiskTier, pages: range) -> int:
    """How many of the pages are there; those that are have the right bytes."""
    out = np.zeros((len(pages), LARGE.page_bytes), dtype=np.uint8)
    keys = [page_key(0, TEXT.chains[page]) for page in pages]
    codecs = {0: make_codec("raw", LARGE)}
    failures = disk.read_pages(keys, TEXT.tokens[pages.start : pages.stop], out.__getitem__, codecs)
    assert set(failures.values()) <= {"the record is missing"}
    for i, page in enumerate(pages):
        assert i in failures or out[i].tobytes() == bytes_of(page)
    return len(pages) - len(failures)


def keys_of(chain: bytes) -> list[bytes]:
    return [page_key(0, chain)]


# Writers and readers


@pytest.mark.forks
def test_writers_in_three_processes_lose_nothing(tmp_path: Path) -> None:
    def work(start: int) -> Callable[[Say, Wait], None]:
        def run(say: Say, wait: Wait) -> None:
            disk = disk_tier(tmp_path / "s")
            for page in range(start, start + 60, 4):
                write(disk, range(page, page + 4))
                assert num_good(disk, range(start, page + 4)) == page + 4 - start
            disk.close()

        return run

    with child(work(0)) as one, child(work(60)) as two:
        disk = disk_tier(tmp_path / "s")
        write(disk, range(120, 180))
        assert (one.join(), two.join()) == (0, 0)
        assert num_good(disk, range(180)) == 180
        disk.check_integrity()
        disk.close()


@pytest.mark.forks
@pytest.mark.parametrize("reads_first", [True, False])
def test_a_process_with_a_larger_cap_grows_the_file(tmp_path: Path, reads_first: bool) -> None:
    """Its pages lie beyond our map: the map is taken over, our own cap stays."""

    def work(say: Say, wait: Wait) -> None:
        wait()
        disk = disk_tier(tmp_path / "s", cap_bytes=64 << 20)
        write(disk, range(200))
        disk.close()

    with child(work) as other:
        disk = disk_tier(tmp_path / "s", cap_bytes=1 << 20)
        write(disk, range(4))
        other.go()
        assert other.join() == 0
    if reads_first:
        assert num_good(disk, range(200)) == 200
    with pytest.raises(StorageFullError, match="cap 1048576 bytes"):
        write(disk, range(4))
    assert num_good(disk, range(200)) == 200
    assert disk.sweep(lambda key: False) == 200
    write(disk, range(4))
    disk.check_integrity()
    disk.close()


def test_two_tiers_of_one_process_with_different_caps(tmp_path: Path) -> None:
    small, large = disk_tier(tmp_path / "s", cap_bytes=1 << 20), disk_tier(tmp_path / "s", cap_bytes=64 << 20)
    write(large, range(200))
    with pytest.raises(StorageFullError, match="cap 1048576 bytes"):
        write(small, range(1))
    assert num_good(small, range(200)) == 200
    for disk in (small, large):
        disk.check_integrity()
        disk.close()


@pytest.mark.forks
def test_a_killed_reader_does_not_make_the_file_grow(tmp_path: Path) -> None:
    """Its slot would keep every page that was live when it read; dead readers are looked for now and then."""

    def read_for_ever(say: Say, wait: Wait) -> None:
        wait()
        environment = lmdb.open(str(tmp_path / "s"), max_dbs=4)
        with environment.begin():
            say("reading")
            wait()

    with child(read_for_ever) as reader:
        disk = disk_tier(tmp_path / "s")
        write(disk, range(8))
        reader.go()
        assert reader.hear() == "reading"
        reader.kill()
    for _ in range(300):
        write(disk, range(8))
    assert disk.file_bytes < 6 << 20, "300 rewrites of 128 KiB"
    disk.close()


@pytest.mark.forks
def test_threads_read_on_while_the_file_is_opened_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Reopening and resizing move every page: they wait for reads, and reads wait for them. In a child, because
    otherwise it would be this process that crashes."""

    def run(say: Say, wait: Wait) -> None:
        failing = FailingDisk(monkeypatch)
        disk = disk_tier(tmp_path / "s")
        write(disk, range(12))
        done, counts = threading.Event(), []

        def read() -> None:
            rounds = 0
            while not done.is_set():
                rounds += num_good(disk, range(12)) == 12
            counts.append(rounds)

        threads = [threading.Thread(target=read) for _ in range(3)]
        for thread in threads:
            thread.start()
        for number in range(60):
            failing.fail(1)
            with pytest.raises(StorageFullError):
                disk.put_session("s", b"")
            disk._file._resize((65 + number % 2) << 20)
        done.set()
        for thread in threads:
            thread.join()
        disk.check_integrity()
        say(counts)

    with child(run) as other:
        counts = other.hear()
        assert other.join() == 0
    assert len(counts) == 3, "a reader failed"
    assert min(counts) > 0


# Leases


@pytest.mark.forks
def test_a_sweep_spares_what_another_living_process_uses(tmp_path: Path) -> None:

    def use(say: Say, wait: Wait) -> None:
        wait()
        other = disk_tier(tmp_path / "s")
        say(other.num_leading(TEXT.chains[:5], keys_of))
        write(other, range(20, 23))
        say("written")
        wait()

    with child(use) as other:
        disk = disk_tier(tmp_path / "s")
        write(disk, range(12))
        disk.num_leading(TEXT.chains[:12], keys_of)
        other.go()
        assert other.hear() == 5
        assert other.hear() == "written"
        assert disk.sweep(lambda key: False) == 7
        assert num_good(disk, range(30)) == 8
        assert not disk.compact(), "its data file would be replaced under it"
        other.kill()
    assert disk.sweep(lambda key: False) == 8, "the dead hold nothing"
    assert disk.compact()
    assert disk.file_bytes < 200_000
    write(disk, range(12))
    assert num_good(disk, range(12)) == 12
    disk.check_integrity()
    disk.close()


def test_the_least_recently_used_go_first_and_of_a_prefix_its_end(tmp_path: Path) -> None:
    disk = disk_tier(tmp_path / "s")
    for first in (0, 10, 20):
        disk.num_leading(TEXT.chains[first : first + 10], keys_of)
        write(disk, range(first, first + 10))
    assert disk.num_leading(TEXT.chains[0:10], keys_of) == 10
    disk.used(TEXT.chains[10:13])
    write(disk, range(30, 31))
    size = len(packed(0)[1])
    assert disk.sweep(lambda key: False, 4 * size) == 4
    assert [num_good(disk, range(a, a + 10)) for a in (0, 10, 20)] == [10, 6, 10], "10..19 was written first"
    disk.sweep(lambda key: False, 6 * size)
    assert [num_good(disk, range(a, a + 10)) for a in (0, 10, 20)] == [10, 3, 7]
    assert num_good(disk, range(20, 27)) == 7, "its beginning is still of use"
    assert disk.sweep(lambda key: key in keys_of(TEXT.chains[25])) == 20
    assert num_good(disk, range(200)) == 1
    disk.close()


@pytest.mark.forks
def test_who_opens_a_store_that_is_being_compacted_is_told_so(tmp_path: Path) -> None:

    def open_it(say: Say, wait: Wait) -> None:
        wait()
        try:
            disk_tier(tmp_path / "s")
        except StoreUnavailableError as error:
            say(str(error))

    with child(open_it) as other:
        disk = disk_tier(tmp_path / "s")
        with disk._lease.alone() as is_alone:
            assert is_alone
            other.go()
            assert "another process is compacting this store" in other.hear()
            assert other.join() == 0
        disk.close()


def test_what_a_killed_compaction_left_is_removed(tmp_path: Path) -> None:
    disk_tier(tmp_path / "s").close()
    (tmp_path / "s" / "compact").mkdir()
    (tmp_path / "s" / "compact" / "data.mdb").write_bytes(bytes(100_000))
    (tmp_path / "s" / "data.mdb.new").write_bytes(bytes(100_000))
    disk_tier(tmp_path / "s").close()
    assert not (tmp_path / "s" / "compact").exists()
    assert not (tmp_path / "s" / "data.mdb.new").exists()


@pytest.mark.parametrize("has_nameless", [True, False])
def test_a_copy_is_seen_only_when_it_is_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, has_nameless: bool
) -> None:
    disk = disk_tier(tmp_path / "s")
    write(disk, range(60))
    disk.sweep(lambda key: key == page_key(0, TEXT.chains[7]))
    before = {path.name for path in (tmp_path / "s").iterdir()}
    if not has_nameless:
        monkeypatch.setattr("stratakv.storage.files.nameless.os.O_TMPFILE", os.O_DIRECTORY)
    seen: list[set[str]] = []

    def spy(file: BinaryIO, path: str) -> None:
        seen.append({found.name for found in (tmp_path / "s").iterdir()} - before - {"replace.lock"})
        name_file(file, path)

    monkeypatch.setattr("stratakv.storage.disk.lmdb_file.name_file", spy)
    assert disk.compact()
    assert [len(names) for names in seen] == [0 if has_nameless else 1]
    assert {path.name for path in (tmp_path / "s").iterdir()} == before | {"replace.lock"}
    assert num_good(disk, range(60)) == 1
    disk.close()


# One folder, one session


@pytest.mark.forks
def test_processes_that_begin_together_make_one_folder(tmp_path: Path) -> None:
    """Each under another spelling, whose name the folder would have."""
    identity = {"format": 2, "weights": "w", "dtype": "torch.float32"}

    def begin_as(number: int) -> Callable[[Say, Wait], None]:
        def run(say: Say, wait: Wait) -> None:
            wait()
            home = find_home(tmp_path / "kv", f"model-{number}", identity, {}, former=dict)
            disk = DiskTier(home.folder, 1 << 24, home.fingerprint, None)
            disk.put_session(f"s{number}", b"1", ())
            disk.close()
            say(home.folder.name)

        return run

    with ExitStack() as stack:
        children = [stack.enter_context(child(begin_as(number))) for number in range(4)]
        for one in children:
            one.go()
        folders = {one.hear() for one in children}
        assert [one.join() for one in children] == [0] * 4
    assert [path.name for path in (tmp_path / "kv").iterdir()] == [*folders]
    with StoreFolder(tmp_path / "kv" / folders.pop()) as store:
        assert store.disk.session_names() == ["s0", "s1", "s2", "s3"]


@pytest.mark.forks
def test_of_two_processes_that_save_one_session_the_second_is_told(tiny_llama: Path, tmp_path: Path) -> None:
    """Both loaded it; what the first was told is saved is still there."""

    def go_on(say: Say, wait: Wait) -> None:
        with load(tiny_llama, tmp_path) as runtime:
            chat = runtime.chat(session="shared")
            say("loaded")
            wait()
            take_turn(chat, 1, 1)
            chat.save("shared")
            say(chat.num_tokens)
            wait()

    with load(tiny_llama, tmp_path) as runtime:
        chat = begin(runtime, 1)
        take_turn(chat, 1, 0)
        chat.save("shared")
    with child(go_on) as other:
        assert other.hear() == "loaded"
        with load(tiny_llama, tmp_path) as runtime:
            chat = runtime.chat(session="shared")
            take_turn(chat, 1, 2)
            other.go()
            theirs = other.hear()
            with pytest.raises(SessionError, match=f"somebody else saved another .* \\({theirs} tokens saved 20"):
                chat.save("shared")
            assert runtime.chat(session="shared").num_tokens == theirs
            chat.save("mine")
            assert runtime.sessions() == ["mine", "shared"]
        other.go()
        assert other.join() == 0


@pytest.mark.forks
def test_savers_that_take_turns_at_random_lose_nothing(tmp_path: Path) -> None:
    """Three processes count up one session, each from what it saw there: every save that was acknowledged counts."""

    def count(say: Say, wait: Wait) -> None:
        disk = disk_tier(tmp_path / "s")
        saved = 0
        while saved < 40:
            found = disk.get_session_version("n")
            seen, number = (found[0], int(found[1].split()[0])) if found else (b"", 0)
            try:
                disk.put_session("n", f"{number + 1} {os.getpid()} {'x' * 20_000}".encode(), {seen})
            except SessionChangedError:
                continue
            saved += 1
        disk.close()

    with child(count) as one, child(count) as two, child(count) as three:
        assert [one.join(), two.join(), three.join()] == [0, 0, 0]
    disk = disk_tier(tmp_path / "s")
    assert (disk.get_session("n") or b"").split()[0] == b"120"
    disk.check_integrity()
    disk.close()
