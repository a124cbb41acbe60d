"""Whether short keys get much attention: the claim that the placement `l2norm` rests on.

    python examples/bench/key_lengths.py [--model smollm2,gemma3-270m] [--ctx 1024] [--samples 2] [--out OUT.json]

For each layer and KV head, over the tokens that are neither sinks nor among the last 64: the rank correlation of minus
a key's length with the attention that all later queries give it, and the share of all attention to these tokens that
the tenth with the shortest keys gets. A placement that knew nothing would have a correlation of 0 and a share of 0.1.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import torch
from builds import write_result
from torch import Tensor

from stratakv.retrieval.placement import Rows
from stratakv.runtime import KVConfig, Runtime
from stratakv.runtime.evaluation.harness import Harness
from stratakv.runtime.evaluation.options import EvalOptions
from stratakv.runtime.evaluation.suites.fidelity import contexts
from stratakv.runtime.evaluation.texts import Texts
from stratakv.runtime.evaluation.variants import Variant
from stratakv.runtime.layers.tiered import TieredLayer, tiered_layers
from stratakv.runtime.process.hardware import hardware

_SINKS, _LAST = 16, 64


def measured(model: str, ctx: int, samples: int) -> dict[str, Any]:
    """Means over heads and contexts of each layer, and over all."""
    found: list[Tensor] = []
    with Runtime.load(model, device="cpu", dtype="float32", kv=KVConfig(disk_gb=0)) as runtime:
        judged = Harness(runtime, [Variant("dense", 336), Variant("h2o", 336)])
        for _, ids in contexts(judged, EvalOptions(ctx, samples), Texts(None)):
            with judged.prefilled(ids) as sequence:
                found.append(torch.stack([_of_layer(layer) for layer in tiered_layers(sequence.layers)]))
    by_layer = torch.stack(found).mean((0, 2))
    rows = [{"correlation": float(c), "share_of_the_shortest": float(s)} for c, s in by_layer]
    mean = by_layer.mean(0)
    return {
        "model": model, "correlation": float(mean[0]), "share_of_the_shortest": float(mean[1]),
        "heads_below_0": float((torch.stack(found).mean(0)[..., 0] < 0).float().mean()), "layers": rows,
    }  # fmt: skip


def _of_layer(layer: TieredLayer) -> Tensor:
    """Correlation and share of each head, `[G, 2]`."""
    assert layer._rows_kept is not None
    queries = torch.cat(layer._rows_kept, 2)
    keys, values = (side[:, : layer.sealed].float() for side in layer.reader.block(0, layer.sealed))
    text = _Text(torch.arange(layer.sealed).expand(len(keys), -1), keys.clone(), values)
    mass = torch.zeros(text.positions.shape)
    for _, columns, weights in Rows(queries[:, :, : layer.sealed], 0, text).weights():
        mass[:, columns] += weights.sum((1, 2))
    middle = slice(_SINKS, layer.sealed - _LAST)
    given = mass / torch.arange(layer.sealed, 0, -1)  # by each query that sees the token
    short, given = -text.keys.norm(dim=-1)[:, middle], given[:, middle]
    tenth = short.topk(short.shape[1] // 10).indices
    share = given.gather(1, tenth).sum(1) / given.sum(1)
    return torch.stack([_rank_correlation(short, given), share], 1)


def _rank_correlation(a: Tensor, b: Tensor) -> Tensor:
    """Spearman's, of each row."""
    ranks = torch.stack([x.argsort(-1).argsort(-1).float() for x in (a, b)])
    ranks -= ranks.mean(-1, keepdim=True)
    found: Tensor = (ranks[0] * ranks[1]).sum(-1) / (ranks[0].norm(dim=-1) * ranks[1].norm(dim=-1))
    return found


class _Text:
    """All of a layer's sealed tokens, at once."""

    prompt = 1 << 30

    def __init__(self, positions: Tensor, keys: Tensor, values: Tensor) -> None:
        self.positions, self.keys, self.values = positions, keys, values

    def blocks(self) -> Any:
        yield slice(0, self.keys.shape[1]), self.keys, self.values


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2,gemma3-270m")
    parser.add_argument("--ctx", type=int, default=1024)
    parser.add_argument("--samples", type=int, default=2)
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    models = [measured(model, asked.ctx, asked.samples) for model in asked.model.split(",")]
    command = "python " + " ".join(sys.argv)
    write_result({"command": command, "hardware": hardware(), "ctx": asked.ctx, "models": models}, asked.out)


if __name__ == "__main__":
    main()
