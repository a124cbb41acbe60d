"""A program to be killed: writes batches of records and says which ones are durable.

    python batch_writer.py FOLDER

Per line read from stdin it forks a child that writes batch after batch until it is killed, prints
`pid N`, `acked N` after each commit, and `dead` when the child is gone. One interpreter start for
many deaths; every child opens the folder anew.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import numpy as np
from kv_pages import FINGERPRINT, LARGE, disk_tier

from stratakv.storage import page_key
from stratakv.storage.disk import record

BATCH = 4
TOKENS = np.arange(LARGE.page_size, dtype=np.uint32)


def keys_of(batch: int) -> list[bytes]:
    return [page_key(0, (batch * BATCH + i).to_bytes(16, "big")) for i in range(BATCH)]


def page_of(key: bytes) -> np.ndarray:
    """The bytes stored under `key`, uint8 `[page_bytes]`."""
    rng = np.random.default_rng(int.from_bytes(key, "big"))
    return rng.integers(0, 256, LARGE.page_bytes, dtype=np.uint8)


def say(line: str) -> None:
    os.write(1, f"{line}\n".encode())


def write_for_ever(folder: Path) -> None:
    disk = disk_tier(folder)
    batch = disk.num_pages // BATCH
    while True:
        pages = [(key, page_of(key).tobytes()) for key in keys_of(batch)]
        disk.write_pages([(k, record.pack(record.PAGE, FINGERPRINT, k, page, tokens=TOKENS)) for k, page in pages])
        say(f"acked {batch}")
        batch += 1


def main() -> None:
    for _ in sys.stdin:
        pid = os.fork()
        if pid == 0:
            write_for_ever(Path(sys.argv[1]))
        say(f"pid {pid}")
        os.waitpid(pid, 0)
        say("dead")


if __name__ == "__main__":
    main()
