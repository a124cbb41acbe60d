"""What huge pages of memory do for a decode step: arenas that get them, and the same where the system gives none.

    python examples/bench/huge_pages.py [--rounds 3] [--out OUT.json]

Each turn is a process of its own, with the default model and drawn keys and values; the two take turns. A process gets
no huge pages where it says so to Linux (`PR_SET_THP_DISABLE`); where Linux gives none to anybody, the two are alike,
and `huge_mb` says so. Logits must be the same, bit for bit.
"""

from __future__ import annotations

import argparse
import ctypes
import hashlib
import json
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from builds import make_builds, write_result

INDEXES, CONTEXTS, BUDGET = ("bounds", "spectral"), (1024, 32768), 1024
FIRST, STEPS, KNOWN = 48, 64, 5
"""Steps whose logits are compared, and not timed; steps that are timed; the token that each appends."""
_THP_DISABLE = 41


def decode(index: str, with_huge: bool) -> None:
    """In a process of its own: print milliseconds a step for each context, and what they left."""
    if not with_huge and ctypes.CDLL(None).prctl(_THP_DISABLE, 1, 0, 0, 0):
        raise SystemExit("this system cannot do without huge pages")
    import numpy as np

    from stratakv.runtime import KVConfig, Runtime
    from stratakv.runtime.bench.random_kv import fill_sequence

    rows = []
    with Runtime.load(
        "smollm2", device="cpu", kv=KVConfig(index=index, budget=BUDGET, disk_gb=0, host_gb=3)
    ) as runtime:
        for context in CONTEXTS:
            tokens = np.random.default_rng(0).integers(100, 40000, context).astype(np.uint32)
            sequence, digest, seconds = runtime.engine.new_sequence(), hashlib.sha256(), []
            fill_sequence(runtime.engine, sequence, tokens, 1)
            for step in range(FIRST + STEPS):
                started = time.perf_counter()
                logits = runtime.engine.decode([sequence], [KNOWN])
                if step < FIRST:
                    digest.update(logits.numpy().tobytes())
                else:
                    seconds.append(time.perf_counter() - started)
            sequence.close()
            huge = sum(map(int, re.findall(r"AnonHugePages: +(\d+)", Path("/proc/self/smaps_rollup").read_text())))
            rows.append(
                {"index": index, "context": context, "step_ms": 1e3 * statistics.median(seconds),
                 "huge_mb": huge / 1e3, "logits": digest.hexdigest()}
            )  # fmt: skip
    print(json.dumps(rows))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--turn", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.turn:
        decode(options.turn[0], options.turn[1] == "huge")
        return
    from stratakv.runtime.process.hardware import hardware

    found: dict[tuple[str, int, str], list[dict[str, Any]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        (build,) = make_builds(None, Path(folder))
        commit = build.commit
        for _ in range(options.rounds):
            for index in INDEXES:
                for pages in ("small", "huge"):
                    turn = [sys.executable, __file__, "--turn", index, pages]
                    ran = subprocess.run(turn, env=build.environment(), capture_output=True, text=True, check=True)
                    for row in json.loads(ran.stdout):
                        found.setdefault((index, row["context"], pages), []).append(row)
    for index in INDEXES:
        for context in CONTEXTS:
            both = [row["logits"] for pages in ("small", "huge") for row in found[index, context, pages]]
            if len(set(both)) > 1:
                raise SystemExit(f"{index} at {context}: logits differ")
    rows = [
        {
            "index": index, "context": context, "pages": pages,
            "step_ms": round(statistics.median(row["step_ms"] for row in turns), 2),
            "step_ms_of_turns": [round(row["step_ms"], 2) for row in turns],
            "huge_mb": round(statistics.median(row["huge_mb"] for row in turns)),
        }
        for (index, context, pages), turns in sorted(found.items())
    ]  # fmt: skip
    command = f"python examples/bench/huge_pages.py --rounds {options.rounds}"
    write_result({"command": command, "hardware": hardware(), "commit": commit, "rows": rows}, options.out)


if __name__ == "__main__":
    main()
