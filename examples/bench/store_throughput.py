"""The store's pace beside a raw copy of the same bytes and beside a file per page, and what restoring a session costs.

    python examples/bench/store_throughput.py [--mb 32] [--rounds 5] [--tokens 8000] [--out FILE]

Everything is timed on one disk in one run, all ways in turn in each round; medians over the rounds, MB of page bytes
per second, before any codec. Pages are drawn from a normal distribution and rounded to bf16; zstd makes about as much
of them as of a model's KV (`payload_per_raw_byte`; docs/results/codecs_cpu.json).

write       until durable: the store with its thread behind `put`, and `flush`; one file with one fsync; a file per
            page, each with its fsync
cold, warm  every page once in random order, BATCH pages a call: `TieredStore.gather`, whose host tier holds one call's
            pages, so that all come from disk; `DiskTier.read_pages`, the same without the host tier; `readinto` for
            files. All but `one file` and `plain files` verify checksums, tokens and keys
cold        after POSIX_FADV_DONTNEED on files that were synced and opened anew; what share of them was in the page
            cache then is in `resident` (mincore). A virtual disk's host may cache beneath that
sparse      cold, and only a tenth of the pages, so that what the kernel reads ahead helps little
restore     of a session of `--tokens` tokens: see session_restore.py

First every way must give back the very bytes that were written; otherwise no time is reported.
"""

from __future__ import annotations

import argparse
import itertools
import os
import statistics
import sys
import time
from collections import defaultdict
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from builds import write_result
from page_cache import drop_from_cache, log, write_durably
from session_restore import measure_restore
from torch import Tensor

from stratakv.runtime.evaluation.run import commit
from stratakv.runtime.process.hardware import hardware
from stratakv.storage import ROOT, Arena, DiskTier, PageLayout, TieredStore, next_chain, page_key
from stratakv.storage.files.scratch import scratch_folder

LAYOUTS = {
    "smollm2": PageLayout(num_heads=3, page_size=16, head_dim=64, dtype="bfloat16"),
    "llama-3.1-8b": PageLayout(num_heads=8, page_size=16, head_dim=128, dtype="bfloat16"),
}
BATCH = 128
"""A decode step reads as many in a layer at the default budget, 2,048 tokens."""
SPARSE = 10
PHASES = ("write", "sparse", "cold", "warm")
CPU = torch.device("cpu")


class Pages:
    """What all ways write and read."""

    def __init__(self, layout: PageLayout, num_bytes: int) -> None:
        self.layout, self.count = layout, num_bytes // layout.page_bytes
        drawn = torch.randn(self.count, layout.page_bytes // 2, generator=torch.Generator().manual_seed(0))
        self.data = drawn.bfloat16().view(torch.uint8)
        self.tokens = np.arange(self.count * layout.page_size, dtype=np.uint32).reshape(self.count, -1)
        self.chains = list(itertools.accumulate(self.tokens, next_chain, initial=ROOT))[1:]


class Way(Protocol):
    """One way to keep pages on disk. `read(numbers, out)` fills out `[n, page_bytes]`."""

    def write(self, folder: Path, pages: Pages) -> None: ...
    def open(self) -> None: ...
    def read(self, numbers: np.ndarray, out: Tensor) -> None: ...
    def close(self) -> None: ...


class OneFile:
    def write(self, folder: Path, pages: Pages) -> None:
        self.path, self.page_bytes = folder / "all", pages.layout.page_bytes
        write_durably(self.path, pages.data)

    def open(self) -> None:
        self.file = open(self.path, "rb", buffering=0)  # noqa: SIM115

    def read(self, numbers: np.ndarray, out: Tensor) -> None:
        for number, row in zip(numbers.tolist(), out.numpy(), strict=True):
            self.file.seek(number * self.page_bytes)
            self.file.readinto(row)

    def close(self) -> None:
        self.file.close()


class PlainFiles:
    def write(self, folder: Path, pages: Pages) -> None:
        self.folder = folder
        for number, page in enumerate(pages.data):
            write_durably(folder / str(number), page)

    def open(self) -> None:
        pass

    def read(self, numbers: np.ndarray, out: Tensor) -> None:
        for number, row in zip(numbers.tolist(), out.numpy(), strict=True):
            with open(self.folder / str(number), "rb", buffering=0) as file:
                file.readinto(row)

    def close(self) -> None:
        pass


class Store:
    """`TieredStore` over a disk tier."""

    def __init__(self, codec: str) -> None:
        self.codec = codec

    def write(self, folder: Path, pages: Pages) -> None:
        self.folder, self.pages = folder, pages
        store = self.opened(pages.count)
        started = time.perf_counter()
        store.put(0, pages.chains, pages.tokens, pages.data)
        store.flush()
        self.write_s = time.perf_counter() - started
        self.payload_per_raw_byte = store.counters.host_to_disk_bytes / pages.data.nbytes
        store.close()

    def opened(self, host_pages: int) -> TieredStore:
        layout = self.pages.layout
        host = Arena("host", host_pages * layout.page_bytes, layout.page_bytes, CPU)
        disk = DiskTier(self.folder, 2 * self.pages.data.nbytes + (64 << 20), bytes(16), {})
        return TieredStore(layout, 1, host=host, disk=disk, codec=self.codec)

    def open(self) -> None:
        self.store = self.opened(BATCH)
        self.pids = self.store.adopt(0, self.pages.chains, self.pages.tokens)

    def read(self, numbers: np.ndarray, out: Tensor) -> None:
        each = np.arange(len(numbers))
        self.store.gather(self.pids[numbers], each, np.zeros_like(each), 1, out)

    def close(self) -> None:
        self.store.close()


class Tier(Store):
    """The disk tier of such a store alone."""

    def read(self, numbers: np.ndarray, out: Tensor) -> None:
        assert self.store.disk is not None
        keys = [page_key(0, self.pages.chains[number]) for number in numbers]
        rows, codecs = out.numpy(), self.store.compression.readers
        failures = self.store.disk.read_pages(keys, self.pages.tokens[numbers], lambda i: rows[i], codecs)
        if failures:
            raise SystemExit(f"pages cannot be read: {failures}")


# Pages


def measure(name: str, num_bytes: int, rounds: int, parent: Path) -> dict[str, Any]:
    pages = Pages(LAYOUTS[name], num_bytes)
    ways: dict[str, Way] = {"one file": OneFile(), "plain files": PlainFiles()}
    for codec in ("raw", "zstd"):
        ways |= {f"store, {codec}": Store(codec), f"disk tier, {codec}": Tier(codec)}
    times: dict[str, dict[str, list[float]]] = {way: defaultdict(list) for way in ways}
    draw = np.random.default_rng(0)
    for number in range(rounds):
        order = list(ways)[number % len(ways) :] + list(ways)[: number % len(ways)]
        for way in order:
            with scratch_folder("bench", parent) as folder:
                one_round(ways[way], Path(folder), pages, draw, times[way], check=number == 0)
    mb = pages.data.nbytes / 1e6
    rows: dict[str, dict[str, Any]] = {
        way: {
            **{f"{phase}_mb_per_s": mb / statistics.median(spent[phase]) for phase in PHASES},
            "resident": max(spent["resident"]),
            "seconds": {phase: spent[phase] for phase in PHASES},
        }
        for way, spent in times.items()
    }
    for way, row in rows.items():
        for phase in PHASES:
            row[f"{phase}_of_one_file"] = row[f"{phase}_mb_per_s"] / rows["one file"][f"{phase}_mb_per_s"]
        if isinstance(store := ways[way], Store):
            row["payload_per_raw_byte"] = store.payload_per_raw_byte
        log(f"{name}, {way}: " + ", ".join(f"{key} {x:.2f}" for key, x in row.items() if isinstance(x, float)))
    return {"page": name, "page_bytes": pages.layout.page_bytes, "pages": pages.count, "ways": rows}


def one_round(
    way: Way, folder: Path, pages: Pages, draw: np.random.Generator, times: dict[str, list[float]], *, check: bool
) -> None:
    started = time.perf_counter()
    way.write(folder, pages)
    times["write"].append(way.write_s if isinstance(way, Store) else time.perf_counter() - started)
    order = draw.permutation(pages.count)
    for phase, chosen in (("sparse", order[: pages.count // SPARSE]), ("cold", order)):
        way.open()
        times["resident"].append(drop_from_cache(folder))
        times[phase].append(read(way, pages, chosen) * pages.count / len(chosen))
        if phase == "cold":
            times["warm"].append(read(way, pages, draw.permutation(pages.count)))
            if check:
                read(way, pages, order, check=True)
        way.close()


def read(way: Way, pages: Pages, order: np.ndarray, *, check: bool = False) -> float:
    """Returns the seconds it took."""
    out, spent = torch.empty(BATCH, pages.layout.page_bytes, dtype=torch.uint8), 0.0
    for start in range(0, len(order), BATCH):
        numbers = order[start : start + BATCH]
        started = time.perf_counter()
        way.read(numbers, out[: len(numbers)])
        spent += time.perf_counter() - started
        if check and not torch.equal(out[: len(numbers)], pages.data[numbers]):
            raise SystemExit(f"{type(way).__name__} gives other bytes back: nothing is reported")
    return spent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mb", type=int, default=32, help="page bytes written and read by each way in each round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=8000, help="of the session; 0: none is restored")
    parser.add_argument("--dir", type=Path, help="a folder on the disk to measure")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    started = time.perf_counter()
    torch.set_num_threads(1)
    result: dict[str, Any] = {
        "command": " ".join(["python", *sys.argv]), "hardware": hardware(), "load_average": os.getloadavg()[0],
        "version": version("stratakv"), "commit": commit(), "mb": given.mb, "rounds": given.rounds, "batch": BATCH,
    }  # fmt: skip
    with scratch_folder("bench", given.dir) as folder:
        result["pages"] = [measure(name, given.mb << 20, given.rounds, Path(folder)) for name in LAYOUTS]
        if given.tokens:
            result["restore"] = measure_restore(given.tokens, given.rounds, Path(folder))
    result["elapsed_s"] = round(time.perf_counter() - started, 1)
    write_result(result, given.out)


if __name__ == "__main__":
    main()
