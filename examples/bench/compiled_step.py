"""A decode step on a CPU: one table of compiled operations, and PyTorch's operations, on the same sequences in turn.

    python examples/bench/compiled_step.py [--contexts 1024,8192,32768] [--rounds 12] [--out FILE]

Correctness first, on a real text: logits of both with the same fp32 weights. Then contexts of random keys and values,
for both kinds of index and of weights. A round is a few steps of each form; figures are the median over rounds of the
best step in each, and ratios are of those. Nothing is set in the environment.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("STRATAKV_COMPILED", "1")

import numpy as np
from builds import write_result

from stratakv.runtime import KVConfig, Runtime
from stratakv.runtime.bench.random_kv import fill_sequence
from stratakv.runtime.engine.engine import Engine
from stratakv.runtime.engine.sequence import Sequence
from stratakv.runtime.process.hardware import hardware

_TEXT = Path(__file__).resolve().parent.parent / "northanger_abbey.txt"
_CHECKED, _STEPS = 1200, 4
_CLOSE = 1e-3
"""Logits of the two forms differ by no more where both compute in fp32."""


def opened(index: str, weights: str, dtype: str = "auto") -> Runtime:
    kv = KVConfig(index=index, budget=1024, disk_gb=0, host_gb=3)
    return Runtime.load("smollm2", device="cpu", weights=weights, dtype=dtype, kv=kv)


def differ(index: str) -> float:
    """The largest difference of logits of the two forms, both in fp32, after a real text that is longer than the
    budget."""
    with opened(index, "own", "float32") as runtime:
        engine = runtime.engine
        ids = np.array(runtime.tokenizer(_TEXT.read_text()).input_ids, dtype=np.uint32)
        first = engine.new_sequence()
        engine.prefill(first, ids[:_CHECKED], want_logits=False)
        twin, compiled, found = engine.fork(first), engine.compiled, []
        for form, sequence in ((compiled, first), (None, twin)):
            engine.compiled = form
            found.append([engine.decode([sequence], [int(token)])[0] for token in ids[_CHECKED : _CHECKED + 16]])
        return max(float((a - b).abs().max()) for a, b in zip(*found, strict=True))


def timed(engine: Engine, sequence: Sequence, rounds: int) -> dict[str, float]:
    """Milliseconds of a step in each form, and their ratio."""
    compiled, point = engine.compiled, engine.fork(sequence)
    best: dict[str, list[float]] = {"pytorch": [], "compiled": []}
    for number in range(rounds + 1):  # the first warms up
        for name, form in (("pytorch", None), ("compiled", compiled)):
            engine.compiled, found = form, []
            for _ in range(_STEPS):
                started = time.perf_counter()
                engine.decode([point], [100 + number])
                found.append(time.perf_counter() - started)
            if number:
                best[name].append(min(found) * 1e3)
    engine.compiled = compiled
    point.close()
    medians = {name: statistics.median(times) for name, times in best.items()}
    ratio = statistics.median(a / b for a, b in zip(best["pytorch"], best["compiled"], strict=True))
    return {**{f"{name}_ms": round(value, 2) for name, value in medians.items()}, "times_faster": round(ratio, 2)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--contexts", default="1024,8192,32768")
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    contexts = [int(number) for number in options.contexts.split(",")]
    result: dict[str, Any] = {
        "command": f"python examples/bench/compiled_step.py --contexts {options.contexts} --rounds {options.rounds}",
        "hardware": hardware(), "rounds": options.rounds, "max_difference": {}, "steps": [],
    }  # fmt: skip
    for index in ("bounds", "spectral"):
        result["max_difference"][index] = found = differ(index)
        if not found <= _CLOSE:
            raise SystemExit(f"logits differ by {found} with {index}, more than {_CLOSE}: no time is reported")
    rng = np.random.default_rng(0)
    for index in ("bounds", "spectral"):
        for weights in ("own", "int8"):
            with opened(index, weights) as runtime:
                for context in contexts:
                    sequence = runtime.engine.new_sequence()
                    fill_sequence(runtime.engine, sequence, rng.integers(100, 40_000, context).astype(np.uint32), 1)
                    row = {"index": index, "weights": weights, "context": context}
                    result["steps"].append(row | timed(runtime.engine, sequence, options.rounds))
                    sequence.close()
                    print(json.dumps(result["steps"][-1]))
    write_result(result, options.out)


if __name__ == "__main__":
    main()
