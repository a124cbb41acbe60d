"""Does the ceiling lose by choosing once per KV head? Exact top-k per query head and per KV head, by KL.

    python examples/bench/oracle_per_head.py [--out FILE]

The fidelity suite's contexts over plain tensors: the last positions pass through the model at once, each seeing 16
sinks, the 64 tokens before it, and the `k` others with the highest exact attention, per query head or by the
group's mean. Needs the evaluation's texts (`make data`).
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from builds import write_result
from torch import Tensor

from stratakv.runtime import KVConfig, Runtime
from stratakv.runtime.evaluation.harness import Harness
from stratakv.runtime.evaluation.options import EvalOptions
from stratakv.runtime.evaluation.plain import PlainModel
from stratakv.runtime.evaluation.suites import fidelity
from stratakv.runtime.evaluation.texts import Texts
from stratakv.runtime.model.model import Model
from stratakv.runtime.process.hardware import hardware
from stratakv.storage.files.scratch import scratch_folder

SINK, LOCAL = 16, 64
CHOICES = ((0, "query head"), (256, "query head"), (256, "KV head"), (512, "query head"), (512, "KV head"))


class Choosing(PlainModel):
    """Plain tensors; rows see sinks, window and their best `k` others. None: everything."""

    k: int | None = None
    per: str = "query head"

    def __init__(self, model: Model) -> None:
        super().__init__(model)
        self.mass: list[float] = []
        """Share of exact attention on what was read, one mean per layer."""
        self.error: list[float] = []
        """Relative L2 error of the attention output, one mean per layer."""

    def _attention(self, q: Tensor, layer: int, seen: Tensor, scale: float) -> Tensor:
        if self.k is None:
            return super()._attention(q, layer, seen, scale)
        groups = self.model.num_kv_heads
        repeats = self.model.num_heads // groups
        keys, values = (t.repeat_interleave(repeats, 0) for t in (self.keys[layer], self.values[layer]))
        scores = (q @ keys.transpose(1, 2) * scale).masked_fill(~seen[:1], float("-inf"))
        weights = own = scores.softmax(-1)
        if self.per == "KV head":
            weights = weights.view(groups, repeats, *weights.shape[1:]).mean(1).repeat_interleave(repeats, 0)
        key = torch.arange(scores.shape[2], device=scores.device)
        behind = key[-scores.shape[1] :].unsqueeze(1) - key
        forced = ((key < SINK) | (behind < LOCAL)).expand_as(scores)
        if self.k:
            forced = forced.scatter(2, weights.masked_fill(forced, -1).topk(self.k, -1).indices, True)
        out, full = scores.masked_fill(~forced, float("-inf")).softmax(-1) @ values, own @ values
        self.mass.append(float(own.masked_fill(~forced, 0).sum(-1).mean()))
        self.error.append(float(((out - full).norm(dim=-1) / full.norm(dim=-1)).mean()))
        return out


def read(model: Model, past: PlainModel, known: np.ndarray, k: int | None, per: str) -> tuple[Tensor, Choosing]:
    """Log-probabilities after each of the known tokens, and who read them."""
    reader = Choosing(model)
    reader.length, reader.keys, reader.values = past.length, list(past.keys), list(past.values)
    reader.k, reader.per = k, per
    return reader.read_all(known).log_softmax(-1), reader


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path)
    out = parser.parse_args().out
    found: list[dict[str, Any]] = []
    with (
        scratch_folder("bench") as folder,
        Runtime.load("smollm2", dtype="float32", kv=KVConfig(path=folder, disk_gb=0)) as runtime,
    ):
        contexts = fidelity.contexts(Harness(runtime, []), EvalOptions(4096, 8), Texts())
        for source, ids in contexts:
            past = PlainModel(runtime.model)
            for start in range(0, len(ids) - fidelity.POSITIONS - 1, 512):
                past.read(ids[start : min(start + 512, len(ids) - fidelity.POSITIONS - 1)])
            known = ids[-fidelity.POSITIONS - 1 : -1]
            true, _ = read(runtime.model, past, known, None, "")
            for k, per in CHOICES:
                other, reader = read(runtime.model, past, known, k, per)
                kl = float((true.exp() * (true - other)).sum(-1).mean())
                means = {"kl": kl, "mass": float(np.mean(reader.mass)), "output_error": float(np.mean(reader.error))}
                found.append({"source": source, "k": k, "per": per, **means})
                print(json.dumps(found[-1]), file=sys.stderr)
    rows = [
        {"k": k, "per": per, **{of: float(np.mean([one[of] for one in found if (one["k"], one["per"]) == (k, per)]))
                                for of in ("kl", "mass", "output_error")}}
        for k, per in CHOICES
    ]  # fmt: skip
    result: dict[str, Any] = {"command": " ".join(sys.argv), "hardware": hardware(), "means": rows, "contexts": found}
    write_result(result, out)


if __name__ == "__main__":
    main()
