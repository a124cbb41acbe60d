"""What it costs a start to know that the model's files are the ones it knew (docs/decisions/0026).

    python examples/bench/digests.py [MODEL ...] [--rounds 9] [--out OUT.json]

For each model: what its key takes when nothing is remembered (`anew`), as on a file system whose times mean nothing;
when the memo knows its files (`known`); and looking whether they changed while they were read (`unchanged`). Medians.
Files are in the page cache, since a start reads them anyway.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from stratakv.runtime.model import locate
from stratakv.runtime.model.identity import model_key, stamps
from stratakv.runtime.process.hardware import hardware
from stratakv.runtime.untrusted.directory import weight_files


def seconds(work: Callable[[], object], rounds: int) -> dict[str, float]:
    """Of `rounds` runs, after one that is not counted: the clock's, and the processor's, to which no neighbour adds."""
    taken = []
    for _ in range(rounds + 1):
        started, busy = time.perf_counter(), time.process_time()
        work()
        taken.append((time.perf_counter() - started, time.process_time() - busy))
    clock, processor = (statistics.median(column) for column in zip(*taken[1:], strict=True))
    return {"seconds": clock, "processor_seconds": processor}


def measure(directory: Path, rounds: int, memo: Path) -> dict[str, Any]:
    model_key(directory)
    if not memo.is_file():
        raise SystemExit(f"{directory}: it was written a moment ago, or its file system has no clock of its own")

    def anew() -> str:
        memo.unlink(missing_ok=True)
        return model_key(directory)

    found = {"anew": seconds(anew, rounds), "known": seconds(lambda: model_key(directory), rounds)}
    found["unchanged"] = seconds(lambda: stamps(directory), rounds)
    size = sum(path.stat().st_size for path in weight_files(directory))
    return {"bytes": size, **found, "anew_gb_per_processor_second": size / found["anew"]["processor_seconds"] / 1e9}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", default=["smollm2"])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    found: dict[str, Any] = {"command": "python " + " ".join(sys.argv), "hardware": hardware(), "models": {}}
    where = {
        f"{model} {kind}": locate.locate(model, kind, on_convert=print)
        for model in given.models
        for kind in ("bfloat16", "float32")
    }
    with tempfile.TemporaryDirectory() as scratch:
        locate.cache_dir = lambda: Path(scratch) / "stratakv"
        for name, directory in where.items():
            found["models"][name] = measure(directory, given.rounds, locate.cache_dir() / "models" / "digests.json")
            print(name, found["models"][name])
    if given.out is not None:
        given.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
