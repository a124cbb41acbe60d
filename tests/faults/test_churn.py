"""Sessions and states come and go for a long time: the file stays near what is alive in it, and nothing is lost."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
from faults import num_faults
from kv_pages import FINGERPRINT, LARGE, disk_tier, text

from stratakv.storage import CHAIN_BYTES, DiskTier, next_chain, page_key
from stratakv.storage.disk import record

ROUNDS = num_faults(default=40)
LIVE_SESSIONS = 12
LAYERS = 3
MOST = 1.3
TEXT = text(LARGE, 1)


class Churn:
    """Sessions of random lengths, each record of a random size, written in batches as the writer does."""

    def __init__(self, disk: DiskTier) -> None:
        self.disk, self.rng, self.sessions = disk, random.Random(0), dict[int, list[bytes]]()
        self.number = 0

    def add(self, num_pages: int) -> None:
        self.number += 1
        chain, keys = bytes(16), []
        for page in range(num_pages):
            chain = next_chain(chain, np.array([self.number, page], dtype=np.uint32))
            keys += [page_key(layer, chain) for layer in range(LAYERS)]
        self.disk.num_leading([key[2:] for key in keys], lambda chain: [page_key(0, chain)])
        for start in range(0, len(keys), 16):
            batch = [(key, self.packed(key)) for key in keys[start : start + 16]]
            self.disk.write_pages(batch)
        self.disk.put_session(f"s{self.number}", self.rng.randbytes(self.rng.randint(300_000, 900_000)))
        states = [chain] * (self.number % 2)
        for state in states:
            self.disk.put_state(state, self.rng.randbytes(self.rng.randint(5_000, 200_000)))
        self.sessions[self.number] = [*keys, *states]

    def packed(self, key: bytes) -> bytes:
        size = self.rng.randint(6_000, 16_000)
        return record.pack(record.PAGE, FINGERPRINT, key, self.rng.randbytes(size), tokens=TEXT.tokens[0])

    def remove(self) -> int:
        """Returns how many pages the session had."""
        number = self.rng.choice(sorted(self.sessions))
        assert self.disk.delete_session(f"s{number}")
        return len(self.sessions.pop(number)) // LAYERS

    def states(self) -> list[bytes]:
        """Chains of those that there should be."""
        return [key for keys in self.sessions.values() for key in keys if len(key) == CHAIN_BYTES]

    def sweep(self) -> None:
        live = {key for keys in self.sessions.values() for key in keys}
        self.disk.sweep(live.__contains__)


def test_the_file_stays_near_its_live_bytes(tmp_path: Path, figures: list[str]) -> None:
    disk = disk_tier(tmp_path / "s", cap_bytes=256 << 20)
    churn = Churn(disk)
    for _ in range(LIVE_SESSIONS):
        churn.add(churn.rng.randint(5, 40))
    worst = 0.0
    for _ in range(ROUNDS):
        num_pages = churn.remove()
        churn.sweep()
        churn.add(num_pages)
        worst = max(worst, disk.file_bytes / disk.used_bytes)
    disk.check_integrity()
    ratio = disk.file_bytes / disk.used_bytes
    assert ratio <= MOST
    while len(churn.sessions) > 3:
        churn.remove()
    churn.sweep()
    before = disk.file_bytes
    assert disk.compact()
    compacted = disk.file_bytes / disk.used_bytes
    assert compacted <= 1.05
    assert disk.file_bytes < before / 2
    assert disk.session_names() == sorted(f"s{number}" for number in churn.sessions)
    assert list(disk.damaged_pages()) == []
    assert list(disk.damaged_states()) == []
    assert churn.states()
    assert all(disk.get_state(chain) is not None for chain in churn.states())
    assert disk.num_pages == sum(map(len, churn.sessions.values())) - len(churn.states())
    churn.add(9)
    disk.check_integrity()
    figures.append(
        f"churn: {ROUNDS} sessions replaced, file {ratio:.2f} x its live bytes (at worst {worst:.2f}, "
        f"allowed {MOST}), {compacted:.2f} x after compaction"
    )
    disk.close()
