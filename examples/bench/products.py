"""Products of one and of four vectors: compiled loops beside PyTorch's own, for the shapes of three models.

    python examples/bench/products.py [--rounds 5] [--out OUT.json]

A weight is multiplied once and then not again before `WEIGHTS_MB` of others were: a step reads each weight from memory.
Ours and PyTorch's take turns; a figure is the median of the turns. Their results must agree first. `call_us` is what a
step's table costs when it is cut in two: between its rows PyTorch could only be called from Python.
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

import numpy as np
import torch
import torch.nn.functional as F
from builds import make_builds, write_result

WEIGHTS_MB, BATCHES = 400, (1, 4)
SHAPES = {
    "smollm2-135m": [(960, 576), (576, 576), (3072, 576), (576, 1536), (49152, 576)],
    "qwen2.5-0.5b": [(1152, 896), (896, 896), (9728, 896), (896, 4864)],
    "llama-3.2-1b": [(3072, 2048), (2048, 2048), (16384, 2048), (2048, 8192)],
}
"""Rows and columns of q k v, output, gate and up, down, and of the smallest model the head."""
KINDS = ("own", "int8")
CLOSE = 2e-2
"""The most by which two results may differ, of the largest number: PyTorch rounds x and its results to bfloat16."""


class Tables:
    """Tables of one row each, for compiled loops, with what they refer to."""

    def __init__(self, products: list[Any], x: torch.Tensor) -> None:
        from stratakv.kernels.compiled import record as r
        from stratakv.runtime.model.strip_rows import fill_products
        from stratakv.runtime.process import compiled

        self.out = torch.empty(len(x), products[0].weight.shape[0])
        self._team, self._tables, self._kept = compiled.team(), [], [products, x]
        for product in products:
            table = np.zeros((len(product.strips), r.WIDTH), dtype=np.int64)
            self._kept.append(fill_products(table, product.strips, len(x), self.out))
            table[0, [r.P_INPUT, r.P_A]] = r.PLAIN, x.data_ptr()
            self._tables.append(table)

    def __call__(self, number: int) -> torch.Tensor:
        self._team.run(self._tables[number])
        return self.out


def microseconds(product: Callable[[int], Any], weights: int) -> float:
    begun = time.perf_counter()
    for number in range(weights):
        product(number)
    return 1e6 * (time.perf_counter() - begun) / weights


def measured(kind: str, rows: int, columns: int, batch: int, rounds: int) -> dict[str, Any]:
    from stratakv.runtime.model.products import PRODUCTS

    count = max(2, WEIGHTS_MB * 1_000_000 // (rows * columns * (2 if kind == "own" else 1)))
    products = [PRODUCTS[kind](torch.randn(rows, columns).bfloat16(), None) for _ in range(count)]
    x = torch.randn(batch, columns)
    tables, in_16 = Tables(products, x), x.bfloat16()
    torchs: Callable[[int], torch.Tensor] = lambda number: products[number](in_16)  # noqa: E731
    expected = torchs(0).float()
    off = float((tables(0) - expected).abs().max() / expected.abs().max())
    if not off <= CLOSE:
        raise SystemExit(f"{kind} {rows} x {columns}: results differ by {off}; no time is reported")
    times: dict[str, list[float]] = {"ours_us": [], "pytorch_us": []}
    for number in range(rounds + 1):
        ours, theirs = microseconds(tables, count), microseconds(torchs, count)
        if number:  # the first touches everything
            times["ours_us"].append(ours)
            times["pytorch_us"].append(theirs)
    found = {name: round(statistics.median(each), 1) for name, each in times.items()}
    return {
        "weights": kind, "rows": rows, "columns": columns, "batch": batch, **found,
        "ratio": round(found["ours_us"] / found["pytorch_us"], 2), "off": round(off, 6),
    }  # fmt: skip


def call_us() -> float:
    """A table of one small product, and PyTorch's small product, one after the other: the least that a cut costs."""
    from stratakv.runtime.model.products import Product

    product, x = Product(torch.randn(64, 64).bfloat16(), None), torch.randn(1, 64)
    tables, in_16 = Tables([product], x), x.bfloat16()

    def both(number: int) -> None:
        tables(number)
        F.linear(in_16, product.weight)

    return round(statistics.median(microseconds(lambda _: both(0), 200) for _ in range(9)), 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    from stratakv.runtime.process import compiled
    from stratakv.runtime.process.hardware import hardware

    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        (build,) = make_builds(None, Path(folder) / "builds")
        compiled.begin(Path(folder))
        rows = []
        for model, shapes in SHAPES.items():
            for shape in shapes:
                for batch in BATCHES:
                    for kind in KINDS:
                        rows.append({"model": model, **measured(kind, *shape, batch, options.rounds)})
                        print(json.dumps(rows[-1]), file=sys.stderr, flush=True)
        command = f"python examples/bench/products.py --rounds {options.rounds}"
        result = {"command": command, "hardware": hardware(), "commit": build.commit, "call_us": call_us()}
    write_result({**result, "rows": rows}, options.out)


if __name__ == "__main__":
    main()
