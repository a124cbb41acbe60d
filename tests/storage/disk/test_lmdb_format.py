"""LMDB's format number is read where LMDB itself would only refuse."""

from __future__ import annotations

from pathlib import Path

import lmdb
import pytest

from stratakv.storage.disk.lmdb_format import refuse_later
from stratakv.storage.errors import LaterStoreError

MAGIC = bytes.fromhex("dec0efbe")


def test_what_this_lmdb_writes_is_read(tmp_path: Path) -> None:
    lmdb.open(str(tmp_path)).close()
    assert MAGIC in (tmp_path / "data.mdb").read_bytes()[:64]
    refuse_later(tmp_path)


@pytest.mark.parametrize("number", [2, 4, 999])
def test_a_later_format_is_refused_by_its_number(tmp_path: Path, number: int) -> None:
    (tmp_path / "data.mdb").write_bytes(bytes(16) + MAGIC + number.to_bytes(4, "little"))
    with pytest.raises(LaterStoreError, match=rf"LMDB format {number}\); it is left as it is"):
        refuse_later(tmp_path)


@pytest.mark.parametrize("data", [b"", b"something else", MAGIC, None])
def test_what_says_no_number_is_left_to_lmdb(tmp_path: Path, data: bytes | None) -> None:
    if data is not None:
        (tmp_path / "data.mdb").write_bytes(data)
    refuse_later(tmp_path)
