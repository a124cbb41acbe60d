"""What restoring a session costs: a process reads text with SmolLM2 and saves; others, each a new one, load the session
and bring every page into host memory. Loading the model is not in it. Run by store_throughput.py.

A restored session must have the bytes of the process that computed them; otherwise no time is reported.
"""

from __future__ import annotations

import itertools
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xxhash
from page_cache import drop_from_cache, log, write_durably

from stratakv.runtime import KVConfig, Runtime
from stratakv.runtime.engine.sequence import Sequence
from stratakv.runtime.layers.tiered import TieredLayer
from stratakv.runtime.sessions import session
from stratakv.storage.files.scratch import scratch_folder

MODEL = "smollm2"
TEXTS = (
    Path(__file__).parents[1] / "northanger_abbey.txt",
    Path(__file__).parents[2] / "tests" / "data" / "texts" / "python-docs.txt",
)
CHUNK = 1 << 20


@contextmanager
def runtime_on(store: Path) -> Iterator[Runtime]:
    with torch.inference_mode(), Runtime.load(MODEL, kv=KVConfig(path=store, index="bounds")) as runtime:
        yield runtime


def save_one(store: Path, num_tokens: int) -> dict[str, Any]:
    """In a process of its own."""
    with runtime_on(store) as runtime:
        text = "\n\n".join(path.read_text() for path in TEXTS)
        ids = np.array(runtime.tokenizer.encode(text)[:num_tokens], dtype=np.uint32)
        sequence = runtime.engine.new_sequence()
        started = time.perf_counter()
        runtime.engine.prefill(sequence, ids, want_logits=False)
        prefilled = time.perf_counter()
        session.save(runtime.engine, sequence, "bench", {})
        saved = time.perf_counter()
        digest, num_bytes = read_session(runtime, sequence)
    write_durably(store / "raw", torch.zeros(num_bytes, dtype=torch.uint8).random_(generator=torch.Generator()))
    return {
        "tokens": len(ids), "page_bytes": num_bytes, "digest": digest,
        "prefill_s": prefilled - started, "save_s": saved - prefilled,
    }  # fmt: skip


def restore_one(store: Path, *, is_cold: bool) -> dict[str, Any]:
    """In a process of its own."""
    with runtime_on(store) as runtime:
        disk = runtime.store.disk
        assert disk is not None
        resident = drop_from_cache(disk.folder) if is_cold else 1.0
        started = time.perf_counter()
        sequence, _, computed = session.load(runtime.engine, "bench")
        loaded = time.perf_counter()
        bring_pages(runtime, sequence)
        ended = time.perf_counter()
        digest, _ = read_session(runtime, sequence)
        file_bytes = disk.file_bytes
    return {
        "computed_again": computed, "digest": digest, "resident": resident, "file_bytes": file_bytes,
        "load_s": loaded - started, "pages_s": ended - loaded, "restore_s": ended - started,
        "raw_s": read_raw(store / "raw", is_cold=is_cold),
    }  # fmt: skip


def bring_pages(runtime: Runtime, sequence: Sequence) -> None:
    """All pages into host memory, each layer's in one call that asks for one byte of each."""
    for pids in pids_of(sequence):
        each = np.arange(len(pids))
        out = torch.empty(len(pids), 1, dtype=torch.uint8)
        runtime.store.gather(pids, each, np.zeros_like(each), runtime.store.layout.page_bytes, out)


def read_session(runtime: Runtime, sequence: Sequence) -> tuple[str, int]:
    """A digest of every page's bytes, and how many those are."""
    digest, total = xxhash.xxh3_128(), 0
    for pids in pids_of(sequence):
        each = np.arange(len(pids))
        out = torch.empty(len(pids), runtime.store.layout.page_bytes, dtype=torch.uint8)
        runtime.store.gather(pids, each, np.zeros_like(each), 1, out)
        digest.update(out.numpy().data)
        total += out.nbytes
    return digest.hexdigest(), total


def pids_of(sequence: Sequence) -> Iterator[np.ndarray]:
    for layer in sequence.layers:
        assert isinstance(layer, TieredLayer), "SmolLM2 has no sliding layers"
        yield layer.pids


def read_raw(path: Path, *, is_cold: bool) -> float:
    """As many bytes as the session's pages have, from start to end into memory that is there already."""
    out = np.zeros(path.stat().st_size, dtype=np.uint8)
    with open(path, "rb", buffering=0) as file:
        if is_cold:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        started = time.perf_counter()
        for start in range(0, out.nbytes, CHUNK):
            file.readinto(out[start : start + CHUNK].data)
        return time.perf_counter() - started


def measure_restore(num_tokens: int, rounds: int, parent: Path) -> dict[str, Any]:
    with scratch_folder("bench", parent) as store:
        first = child("save", str(store), str(num_tokens))
        found: dict[str, list[dict[str, Any]]] = {"cold": [], "warm": []}
        for _, kind in itertools.product(range(rounds), found):
            found[kind].append(child(kind, str(store)))
    runs = [*found["cold"], *found["warm"]]
    if any(run["digest"] != first["digest"] or run["computed_again"] for run in runs):
        raise SystemExit("a restored session differs from the one that was saved: nothing is reported")
    result: dict[str, Any] = {"model": MODEL, **first, "file_bytes": runs[0]["file_bytes"]}
    for kind, runs in found.items():
        middle = {
            key: statistics.median(run[key] for run in runs) for key in ("load_s", "pages_s", "restore_s", "raw_s")
        }
        result[kind] = {
            **middle,
            "mb_per_s": first["page_bytes"] / 1e6 / middle["restore_s"],
            "raw_mb_per_s": first["page_bytes"] / 1e6 / middle["raw_s"],
            "of_raw": middle["raw_s"] / middle["restore_s"],
            "of_prefill": middle["restore_s"] / first["prefill_s"],
            "resident": max(run["resident"] for run in runs),
            "seconds": [run["restore_s"] for run in runs],
        }
        log(f"restore, {kind}: {result[kind]}")
    return result


def child(*arguments: str) -> dict[str, Any]:
    done = subprocess.run([sys.executable, __file__, *arguments], stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def run_child(kind: str, store: str, *rest: str) -> None:
    roles: dict[str, Callable[[], dict[str, Any]]] = {
        "save": lambda: save_one(Path(store), int(rest[0])),
        "cold": lambda: restore_one(Path(store), is_cold=True),
        "warm": lambda: restore_one(Path(store), is_cold=False),
    }
    print(json.dumps(roles[kind]()))


if __name__ == "__main__":
    run_child(*sys.argv[1:])
