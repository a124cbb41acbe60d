"""Sessions by name: each has a version, which tells a second saver, and keys that are no names hide none of them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from hostile import plant
from kv_pages import FINGERPRINT, disk_tier

from stratakv.storage import CHAIN_BYTES, DiskTier, RecordError, SessionChangedError, StorageFullError
from stratakv.storage.disk import record, sessions
from stratakv.storage.disk.lmdb_file import USES


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[DiskTier]:
    disk = disk_tier(tmp_path, cap_bytes=1 << 20)
    yield disk
    disk.close()


def test_of_two_that_save_under_one_name_the_second_is_told(disk: DiskTier) -> None:
    first = disk.put_session("s", b"1", only_over=())
    second = disk.put_session("s", b"2", only_over=[first])
    for seen in ((), [first]):
        with pytest.raises(SessionChangedError, match="session 's' is another one by now"):
            disk.put_session("s", b"3", only_over=seen)
    assert disk.get_session_version("s") == (second, b"2")
    disk.put_session("s", b"3", only_over=[first, second])
    disk.put_session("s", b"4")
    assert disk.get_session("s") == b"4"


def test_a_version_can_be_told_before_it_is_written(disk: DiskTier) -> None:
    assert disk.session_version("s") is None
    assert disk.get_session_version("s") is None
    assert disk.version_of(b"1") == disk.put_session("s", b"1") == disk.session_version("s")
    assert disk.version_of(b"2") != disk.version_of(b"1")


def test_a_damaged_session_has_a_version_and_can_be_replaced_or_deleted(tmp_path: Path) -> None:
    damaged = record.pack(record.SESSION, FINGERPRINT, b"", b"content")[:-1] + b"T"
    for name in (b"a", b"b"):
        plant(tmp_path, b"sessions", name, damaged)
    disk = disk_tier(tmp_path)
    with pytest.raises(RecordError, match=r"^checksum: "):
        disk.get_session("a")
    assert disk.unverified_session("a") == b"contenT"
    version = disk.session_version("a")
    assert version == record.checksum(damaged)
    disk.put_session("a", b"anew", only_over=[version])
    assert disk.get_session("a") == b"anew"
    assert (disk.delete_session("b"), disk.delete_session("b")) == (True, False)
    assert disk.unverified_session("b") == b""
    disk.close()


def test_who_may_not_write_leaves_the_session_as_it_was(disk: DiskTier) -> None:
    def refuse() -> None:
        raise StorageFullError("not now")

    disk.put_session("s", b"1")
    disk.check_before_writing(refuse)
    with pytest.raises(StorageFullError, match="not now"):
        disk.put_session("s", b"2")
    assert disk.get_session("s") == b"1"


def test_a_key_that_is_no_name_hides_no_session(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for key in (b"keeper", b"\xff", b"a/b"):
        plant(tmp_path, b"sessions", key, b"")
    disk = disk_tier(tmp_path)
    assert disk.session_names() == ["keeper"]
    assert "2 session records have no name" in caplog.text
    assert disk.nameless_sessions() == [b"a/b", b"\xff"]
    assert disk.delete_nameless(spare=[b"a/b"]) == 1
    assert disk.nameless_sessions() == [b"a/b"]
    assert disk.delete_nameless() == 1
    assert (disk.nameless_sessions(), disk.session_names()) == ([], ["keeper"])
    disk.close()


@pytest.mark.parametrize("name", ["s", "8 letter"])
def test_the_last_use_is_remembered_as_long_as_the_session(
    disk: DiskTier, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(sessions.time, "time", lambda: 1234.5)
    disk.put_session(name, b"1")
    assert disk.session_used_at(name) is None
    disk.session_used(name)
    assert disk.session_used_at(name) == 1234.5
    assert CHAIN_BYTES not in map(len, disk._records.keys(USES)), "it is not taken for a page's use"
    disk.delete_session(name)
    assert disk.session_used_at(name) is None
