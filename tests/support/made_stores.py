"""Store folders with pages and sessions, made without a model: as much as is read of them without one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy

from stratakv.storage import DiskTier, page_key
from stratakv.storage.disk import record

PAGE_SIZE, PAGE_BYTES = 4, 5000
LAYERS = range(2)


def chains(text: str) -> list[bytes]:
    """A page's chain for each letter."""
    return [letter.encode() * 16 for letter in text]


def session_payload(pages: list[bytes], **changes: Any) -> bytes:
    """The payload of a session with these chains and one token more than they name; `changes` are header fields."""
    header: dict[str, Any] = {
        "version": 1, "index": "bounds", "num_pages": len(pages), "notes": {}, "saved_at": 1_800_000_000.0,
    }  # fmt: skip
    tensors = {
        "tokens": np.arange(PAGE_SIZE * len(pages) + 1, dtype=np.int64),
        "chains": np.frombuffer(b"".join(pages) or b"\0", np.uint8),
    }
    return safetensors.numpy.save(tensors, {"stratakv": json.dumps(header | changes)})


def fingerprint(number: int) -> bytes:
    return bytes([number]) * 16


def made_folder(
    root: Path, called: str, sessions: dict[str, str], *, unsaved: str = "", number: int = 1, **said: Any
) -> Path:
    """A folder of `root` with sessions of pages as `chains` names them, and pages that no session has.

    Args:
        said: what stands in `config.json`.
    """
    folder = root / f"{called}_{fingerprint(number).hex()}"
    disk = DiskTier(folder, 8 << 20, fingerprint(number), said)
    letters = "".join(dict.fromkeys("".join([*sessions.values(), unsaved])))
    disk.write_pages(
        [
            (key, record.pack(record.PAGE, fingerprint(number), key, bytes(PAGE_BYTES)))
            for layer in LAYERS
            for chain in chains(letters)
            for key in [page_key(layer, chain)]
        ]
    )
    for at, (name, pages) in enumerate(sessions.items()):
        disk.put_session(name, session_payload(chains(pages), saved_at=1_800_000_000.0 + at))
    disk.close()
    return folder
