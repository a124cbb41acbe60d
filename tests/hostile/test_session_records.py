"""Hostile session and state records on a real LMDB file: refused with the field that gives them away."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hostile import FINGERPRINT, PAYLOAD, TOKENS, by_hand, plant
from kv_pages import disk_tier

from stratakv.storage import RecordError

CHAIN = bytes(range(16))
CHANGES: dict[str, tuple[dict[str, Any], str]] = {
    "magic": ({"magic": b"SKVS"}, "magic"),
    "version": ({"version": 2}, "version"),
    "checksum": ({"sum": 0}, "checksum"),
    "a-page": ({"kind": 0}, "kind"),
    "another-models": ({"fingerprint": bytes(16)}, "fingerprint"),
    "another-key": ({"key": bytes(18)[:17] + b"\1"}, "key"),
    "trailing-byte": ({"tail": b"\0"}, "length"),
    "size-smaller": ({"size": len(PAYLOAD) - 1}, "length"),
    "size-huge": ({"size": 2**64 - 1}, "length"),
    "token-count-lies": ({"count": 1}, "length"),
    "tokens": ({"tokens": TOKENS}, "tokens"),
    "compressed": ({"codec": 1}, "codec"),
    "raw-bytes-0": ({"raw": 0}, "raw bytes"),
    "raw-bytes-huge": ({"raw": 2**64 - 1}, "raw bytes"),
}


def session(**changes: Any) -> bytes:
    return by_hand(**({"kind": 1, "codec": 0, "key": b"", "tokens": TOKENS[:0], "raw": len(PAYLOAD)} | changes))


def state(**changes: Any) -> bytes:
    return session(**({"kind": 2, "key": CHAIN} | changes))


@pytest.mark.parametrize("name", CHANGES)
def test_a_session_is_refused_by_its_field(name: str, tmp_path: Path) -> None:
    changes, field = CHANGES[name]
    plant(tmp_path, b"sessions", b"keeper", session(**changes))
    disk = disk_tier(tmp_path, fingerprint=FINGERPRINT)
    with pytest.raises(RecordError, match=f"^{field}: "):
        disk.get_session("keeper")
    disk.close()


@pytest.mark.parametrize("name", CHANGES)
def test_a_state_is_refused_by_its_field(name: str, tmp_path: Path) -> None:
    changes, field = CHANGES[name]
    plant(tmp_path, b"states", CHAIN, state(**changes))
    disk = disk_tier(tmp_path, fingerprint=FINGERPRINT)
    with pytest.raises(RecordError, match=f"^{field}: "):
        disk.get_state(CHAIN)
    disk.close()


def test_a_session_and_a_state_are_not_each_other(tmp_path: Path) -> None:
    plant(tmp_path, b"sessions", b"keeper", state(key=b""))
    plant(tmp_path, b"states", CHAIN, session(key=CHAIN))
    disk = disk_tier(tmp_path, fingerprint=FINGERPRINT)
    for read in (lambda: disk.get_session("keeper"), lambda: disk.get_state(CHAIN)):
        with pytest.raises(RecordError, match=r"^kind: "):
            read()
    disk.close()


def test_honest_ones_are_read(tmp_path: Path) -> None:
    plant(tmp_path, b"sessions", b"keeper", session())
    plant(tmp_path, b"states", CHAIN, state())
    disk = disk_tier(tmp_path, fingerprint=FINGERPRINT)
    assert disk.get_session("keeper") == disk.get_state(CHAIN) == PAYLOAD
    disk.close()
