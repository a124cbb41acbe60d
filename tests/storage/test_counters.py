"""Counts, what was added since, and rates."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

from stratakv.storage.counters import Counters


def test_what_was_added_since() -> None:
    counters = Counters(gpu_reads=3, stall_s=0.5)
    before = Counters(**counters.as_dict())
    counters.add(gpu_reads=2, host_reads=5, stall_s=0.25)
    assert counters.since(before) == Counters(gpu_reads=2, host_reads=5, stall_s=0.25)
    assert counters.reads == 10


def test_rates() -> None:
    counters = Counters(gpu_reads=5, host_reads=3, disk_reads=2, row_hits=1, row_misses=3)
    assert (counters.hit_rate, counters.device_hit_rate, counters.row_hit_rate) == (0.8, 0.5, 0.25)


def test_no_rate_of_nothing() -> None:
    counters = Counters()
    assert (counters.hit_rate, counters.device_hit_rate, counters.row_hit_rate) == (None, None, None)


def test_threads_lose_no_count() -> None:
    counters = Counters()
    with ThreadPoolExecutor(4) as pool:
        for _ in range(4):
            pool.submit(lambda: [counters.add(prefetches=1) for _ in range(2000)])
    assert counters.prefetches == 8000
