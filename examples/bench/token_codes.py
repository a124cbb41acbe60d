"""Which few bytes per token rank tokens best? Ways to code keys, by the KL of what their choice makes a model say.

    python examples/bench/token_codes.py [--out FILE]

The fidelity suite's contexts over plain tensors: the last positions pass through the model at once, each seeing 16
sinks, the 72 tokens before it, and the `k` others that a coding of the context's keys scores highest (the KV head's
mean of softmax). Attention over what is seen is exact. Needs the evaluation's texts (`make data`).
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from builds import write_result
from torch import Tensor

from stratakv.kernels.topk_pages import group_scores
from stratakv.retrieval import IndexParams, make_index
from stratakv.retrieval.indexes.spectral import SpectralIndex
from stratakv.retrieval.structures.whitening import covariance, query_whitened_basis, second_moment
from stratakv.runtime import KVConfig, Runtime
from stratakv.runtime.evaluation.harness import Harness
from stratakv.runtime.evaluation.options import EvalOptions
from stratakv.runtime.evaluation.plain import PlainModel
from stratakv.runtime.evaluation.suites import fidelity
from stratakv.runtime.evaluation.texts import Texts
from stratakv.runtime.model.model import Model
from stratakv.runtime.process.hardware import hardware
from stratakv.storage.files.scratch import scratch_folder

SINK, LOCAL, PAGE = 16, 72, 16
CHOSEN = (117, 322)
"""With sinks and window: 5 and 10 % of 4,096."""
Score = Callable[[Tensor], Tensor]
"""Scaled queries `[G, R, D]` -> estimates of q.k over the context, `[G, R, n]`."""


def exact(keys: Tensor, queries: Tensor) -> Score:
    return lambda q: q @ keys.transpose(1, 2)


def spectral(settings: str = "", *, asks: bool = True) -> Callable[[Tensor, Tensor], Score]:
    """The index itself. `asks`: whether it is told queries."""

    def code(keys: Tensor, queries: Tensor) -> Score:
        index = make_index(f"spectral{settings}", IndexParams(page_size=PAGE))
        assert isinstance(index, SpectralIndex)
        whole = keys.shape[1] // PAGE * PAGE
        state = index.build(keys[:, :whole], queries if asks else None)
        rest = keys[:, whole:].transpose(1, 2)
        return lambda q: torch.cat([index.scores(state, q, whole), q @ rest], -1)

    return code


def scalar(coefficients: int, bits: int) -> Callable[[Tensor, Tensor], Score]:
    """Whitened coefficients, each quantised by itself between its extremes."""

    def code(keys: Tensor, queries: Tensor) -> Score:
        centred = keys - keys.mean(1, keepdim=True)
        basis = query_whitened_basis(covariance(keys), second_moment(queries), coefficients, 1)
        found = centred @ basis.of_keys
        low, high = found.amin(1, keepdim=True), found.amax(1, keepdim=True)
        step = (high - low) / (2**bits - 1)
        near = ((found - low) / step).round() * step + low
        return lambda q: q @ basis.of_queries @ near.transpose(1, 2)

    return code


CODINGS: dict[str, tuple[Callable[[Tensor, Tensor], Score], float]] = {
    "exact keys": (exact, 128),
    "16 coefficients of 4 bits": (scalar(16, 4), 8),
    "product codes 8, no anchors": (spectral(":segment=1000000:parts=8"), 8),
    "product codes 16 of 4 wide, no anchors": (spectral(":segment=1000000:parts=16:part_width=4"), 16),
    "product codes 6, anchors every 64: spectral": (spectral(), 8),
    "the same, no queries to learn from": (spectral(asks=False), 8),
    "product codes 7, anchors every 128": (spectral(":segment=128:parts=7"), 8),
    "product codes 8, anchors every 64": (spectral(":parts=8"), 10),
    "product codes 4 of 12 wide, anchors every 128": (spectral(":segment=128:parts=4:part_width=12"), 5),
}
"""Name -> coding, and its bytes per token and KV head at head dim 64."""


class Choosing(PlainModel):
    """Plain tensors. The context's keys are scored through `score_of`; later ones exactly.

    With `estimates`, tokens that are not read count with their estimated weight and the mean value of their
    run of 64: RetroInfer's estimation zone (arXiv 2505.02922), with runs for clusters.
    """

    def __init__(self, model: Model, score_of: list[Score], k: int, *, estimates: bool = False) -> None:
        super().__init__(model)
        self.score_of, self.k, self.estimates = score_of, k, estimates

    def _attention(self, q: Tensor, layer: int, seen: Tensor, scale: float) -> Tensor:
        groups, rows = self.model.num_kv_heads, q.shape[1]
        keys, values = self.keys[layer], self.values[layer]
        total = keys.shape[1]
        query = (q * scale).reshape(groups, -1, q.shape[2])  # [G, R * rows, D]
        past = total - rows
        true = (query @ keys.transpose(1, 2)).reshape(groups, -1, rows, total)
        near = torch.cat([self.score_of[layer](query).reshape(*true.shape[:3], past), true[..., past:]], -1)
        key = torch.arange(total)
        row = key[past:].unsqueeze(1)
        hidden, forced = key > row, (key < SINK) | ((row - key < LOCAL) & (key <= row))
        true, near = true.masked_fill(hidden, float("-inf")), near.masked_fill(hidden, float("-inf"))
        ranked = torch.stack([group_scores(near[:, :, at]) for at in range(rows)], 1)  # [G, rows, total]
        best = ranked.masked_fill(forced | hidden, -1).topk(self.k, -1).indices
        read = forced.expand(groups, -1, -1).scatter(2, best, True).unsqueeze(1)
        top = true.amax(-1, keepdim=True)
        weights = torch.exp(true - top).masked_fill(~read, 0)
        out, norm = weights @ values.unsqueeze(1), weights.sum(-1, keepdim=True)
        if self.estimates:
            runs = torch.arange(total) // 64
            means = torch.zeros(groups, int(runs[-1]) + 1, values.shape[2]).index_add_(1, runs, values)
            means /= torch.bincount(runs).unsqueeze(1)
            rest = torch.exp(near - top).masked_fill(read | hidden, 0)
            by_run = torch.zeros(*rest.shape[:3], means.shape[1]).index_add_(3, runs, rest)
            out, norm = out + by_run @ means.unsqueeze(1), norm + rest.sum(-1, keepdim=True)
        return (out / norm).reshape(q.shape)


class Listening(PlainModel):
    """Keeps the queries of each page's last token, as the engine does."""

    def __init__(self, model: Model) -> None:
        super().__init__(model)
        self.queries: dict[int, list[Tensor]] = {}

    def _attention(self, q: Tensor, layer: int, seen: Tensor, scale: float) -> Tensor:
        start = seen.shape[-1] - q.shape[1]
        asked = q[:, -(start + 1) % PAGE :: PAGE] * scale
        self.queries.setdefault(layer, []).append(asked.view(self.model.num_kv_heads, -1, *asked.shape[1:]))
        return super()._attention(q, layer, seen, scale)


def measure(model: Model, ids: np.ndarray) -> list[dict[str, Any]]:
    """The mean KL of every coding at every `k`, for one context."""
    past, known = Listening(model), ids[-fidelity.POSITIONS - 1 : -1]
    stop = len(ids) - fidelity.POSITIONS - 1
    for start in range(0, stop, 512):
        past.read(ids[start : min(start + 512, stop)])
    true = past.copy().read_all(known).log_softmax(-1)
    found = []
    for name, (coding, size) in CODINGS.items():
        scores = [coding(past.keys[at], torch.cat(past.queries[at], 2)) for at in range(model.num_layers)]
        for estimates in (False, True) if name.endswith("spectral") else (False,):
            for k in CHOSEN:
                reader = Choosing(model, scores, k, estimates=estimates)
                reader.length, reader.keys, reader.values = past.length, list(past.keys), list(past.values)
                kl = float((true.exp() * (true - reader.read_all(known).log_softmax(-1))).sum(-1).mean())
                label = name + " + an estimate of what is not read" * estimates
                found.append({"coding": label, "bytes": size, "k": k, "kl": kl})
                print(json.dumps(found[-1]), file=sys.stderr)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--ctx", type=int, default=4096)
    parser.add_argument("--samples", type=int, default=4)
    given = parser.parse_args()
    rows: list[dict[str, Any]] = []
    with (
        torch.inference_mode(),
        scratch_folder("bench") as folder,
        Runtime.load("smollm2", dtype="float32", kv=KVConfig(path=folder, disk_gb=0)) as runtime,
    ):
        for source, ids in fidelity.contexts(Harness(runtime, []), EvalOptions(given.ctx, given.samples), Texts()):
            rows += [{"source": source, **row} for row in measure(runtime.model, ids)]
    means = []
    for name, k in dict.fromkeys((row["coding"], row["k"]) for row in rows):
        kl, best = (
            float(np.mean([row["kl"] for row in rows if (row["coding"], row["k"]) == (of, k)]))
            for of in (name, "exact keys")
        )
        size = next(row["bytes"] for row in rows if row["coding"] == name)
        means.append({"coding": name, "bytes": size, "k": k, "kl": kl, "kl_over_exact": kl / best})
    result: dict[str, Any] = {
        "command": " ".join(sys.argv), "hardware": hardware(), "ctx": given.ctx, "means": means, "contexts": rows,
    }  # fmt: skip
    write_result(result, given.out)


if __name__ == "__main__":
    main()
