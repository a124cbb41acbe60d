"""A few layers of a known shape beside transformers': what a prefill and a step take of one thread.

    python examples/bench/kinds_of_layers.py [--shape glm-4.7-flash] [--layers 2] [--context 8192] [--steps 8]
        [--index spectral] [--out OUT.json]

Seconds are the process's own on one thread, not the clock's: they hold on a machine that others use, too, and leave out
what waits. Numbers are fp32. The vocabulary has 4,096 tokens and a mixture 8 experts, so that two layers are not a head
and a little more; all else is the shape's. A prefill's logits must be transformers' before anything counts. `prefill`
and `step` are ratios, ours over transformers'.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from builds import write_result

from stratakv.runtime import KVConfig
from stratakv.runtime.bench.options import BenchOptions
from stratakv.runtime.bench.shapes import SHAPES
from stratakv.runtime.bench.subject import Subject
from stratakv.runtime.process.hardware import hardware

VOCABULARY, EXPERTS, BUDGET = 4096, 8, 1024
CLOSE = 1e-4
"""The most by which logits may differ, of the largest."""


def small(name: str) -> str:
    """A shape with fewer tokens and experts, which is known by the name that is returned."""
    shape = SHAPES[name]
    more = {key: EXPERTS if key in ("num_experts", "n_routed_experts") else value for key, value in shape.more.items()}
    experts = None if shape.experts is None else (EXPERTS, *shape.experts[1:])
    SHAPES["small"] = replace(shape, vocabulary=VOCABULARY, experts=experts, more=more)
    return "small"


def ours(subject: Subject, tokens: np.ndarray, context: int, index: str, folder: Path) -> dict[str, Any]:
    kv = KVConfig(path=folder, index=index, budget=BUDGET, host_gb=2, disk_gb=0)
    with subject.runtime(kv) as runtime:
        sequence = runtime.engine.new_sequence()
        began = time.process_time()
        logits = runtime.engine.prefill(sequence, tokens[:context]).logits
        prefill_s, steps = time.process_time() - began, []
        for token in tokens[context:]:
            began = time.process_time()
            runtime.engine.decode([sequence], [int(token)])
            steps.append(time.process_time() - began)
    return {"prefill_s": prefill_s, "step_s": statistics.median(steps), "logits": logits}


def theirs(subject: Subject, tokens: np.ndarray, context: int) -> dict[str, Any]:
    reference = subject.reference(torch.float32)
    cache, began = reference.new_cache(), time.process_time()
    logits = reference.extend(cache, tokens[None, :context])
    prefill_s, steps = time.process_time() - began, []
    for at in range(context, len(tokens)):
        began = time.process_time()
        reference.extend(cache, tokens[None, at : at + 1])
        steps.append(time.process_time() - began)
    return {"prefill_s": prefill_s, "step_s": statistics.median(steps), "logits": logits}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", default="glm-4.7-flash", choices=sorted(SHAPES))
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--context", type=int, default=8192)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--index", default="spectral")
    parser.add_argument("--out", type=Path)
    said = parser.parse_args()
    torch.set_num_threads(1)
    load = os.getloadavg()[0]
    options = BenchOptions(shape=small(said.shape), layers=said.layers, dtype="float32", device="cpu")
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        subject = Subject.load(options, Path(folder), said.context + said.steps, lambda line: None)
        tokens = subject.tokens(0, said.context + said.steps)
        sides = {
            "ours": ours(subject, tokens, said.context, said.index, Path(folder) / "kv"),
            "transformers": theirs(subject, tokens, said.context),
        }
    mine, expected = (side.pop("logits").flatten() for side in sides.values())
    error = float((mine - expected).abs().max() / expected.abs().max())
    if error > CLOSE:
        raise SystemExit(f"logits differ by {error:.2g} of the largest: nothing is measured")
    ratios = {name: sides["ours"][f"{name}_s"] / sides["transformers"][f"{name}_s"] for name in ("prefill", "step")}
    write_result(
        {"command": "python " + " ".join(sys.argv), "hardware": {**hardware(), "load_average": load},
         "shape": said.shape, "layers": said.layers, "context": said.context, "index": said.index, "budget": BUDGET,
         "logits_error": error, **sides, **ratios},
        said.out,
    )  # fmt: skip


if __name__ == "__main__":
    main()
