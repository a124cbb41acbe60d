"""What a placement costs in one layer: at a prompt, and at each step of the reply behind it; and what it remembers.

    python examples/bench/placement_cost.py [--tokens 4096] [--keep 0.1,0.25] [--placement NAMES] [--out FILE]

One layer of SmolLM2's shape, fp32 KV in a store in host memory, prefilled and stepped as the engine does it
(`TieredLayer`), with the text of `index_cost.py`. Beside the placements stand, in the same rounds, one reader that
reads everything, some indexes at the budget, and a placement beside which `spectral` searches (`mode=hot`). A prompt's
time is attention, storing, indexing, judging and keeping together; projections and MLPs are not in it. A step's
includes the pages that fill: a placement that prunes judges there. First each placement must read what it kept,
exactly; otherwise no time is reported.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from builds import HERE, write_result
from index_cost import CPU, DIM, HEADS, LAYOUT, PAGE, QUERIES, SCALE, Rope, Text, error, no_recovery, timed
from torch import Tensor

from stratakv.kernels.compiled.kept import Cache
from stratakv.kernels.decode_attention import decode_attention
from stratakv.retrieval import IndexedLayer, IndexParams, make_index
from stratakv.retrieval.placement import Facts
from stratakv.retrieval.placement_registry import PLACEMENTS, placement_spec
from stratakv.runtime.layers.tiered import TieredLayer
from stratakv.runtime.layers.workspace import Workspace
from stratakv.runtime.process.hardware import hardware
from stratakv.storage import ROOT, Arena, TieredStore, next_chain

REPLY, CHUNK = 64, 512
PARAMS = IndexParams(page_size=PAGE)
BESIDE = ("dense", "spectral", "window", "louiskv", "actqkv", "snapkv:mode=hot")
_BOUND = 1e-4


@dataclass
class Times:
    """Seconds of each round."""

    prompt: list[float] = field(default_factory=list)
    step: list[float] = field(default_factory=list)
    num_bytes: float = 0.0
    read: float = 0.0

    def median(self, name: str) -> float:
        seconds: list[float] = getattr(self, name)
        return statistics.median(seconds)


class Bench:
    """Layers over one text in one store, a new one for each round."""

    def __init__(self, tokens: int) -> None:
        self.tokens, self.text = tokens, Text(tokens + REPLY)
        self.queries = self.text.queries(torch.arange(tokens + REPLY)).flatten(0, 1)
        self.kv = torch.stack([self.text.keys, self.text.values]).float()
        self.ids = np.arange(tokens + REPLY, dtype=np.uint32).reshape(-1, PAGE)
        self.chains, chain = [], ROOT
        for page in self.ids:
            chain = next_chain(chain, page)
            self.chains.append(chain)
        layout = replace(LAYOUT, dtype="float32")
        room = (2 * len(self.ids) + 16) * layout.page_bytes
        self.store = TieredStore(layout, 1, host=Arena("host", room, layout.page_bytes, CPU), codec="raw")
        self.workspace = Workspace(layout, tokens, CPU)

    def layer(self, name: str, budget: int) -> TieredLayer:
        is_placed, is_hot = name.split(":")[0] in PLACEMENTS, name.endswith(":mode=hot")
        reads = "spectral" if is_hot else "dense" if is_placed else name
        index = make_index(reads, PARAMS, IndexedLayer(0, Rope()))
        facts = Facts(QUERIES, {0: torch.rand(2, HEADS)}, torch.zeros(len(self.ids) * PAGE, dtype=torch.uint8))
        placement = placement_spec(name).make(PARAMS, 0, facts) if is_placed else None
        return TieredLayer(
            0, self.store, index, self.workspace, lambda context: budget, no_recovery, repeats=QUERIES,
            placement=placement, is_visible=not is_hot,
        )  # fmt: skip

    def round(self, name: str, budget: int, times: Times) -> None:
        layer = self.layer(name, budget)
        with self.workspace.turns.taken():
            times.prompt.append(timed(self._prefill, layer, budget)[1])
            times.num_bytes = _bytes_kept(layer) / self.tokens / HEADS
            if layer.placed is not None and layer.placed.is_visible:
                self._check(layer)
            times.step.append(timed(self._reply, layer)[1] / REPLY)
            times.read = layer.tokens_read
        layer.close()

    def _prefill(self, layer: TieredLayer, budget: int) -> None:
        layer.begin()
        for at in range(0, self.tokens, CHUNK):
            some = slice(at, min(at + CHUNK, self.tokens))
            layer.extend(self.queries[:, some], self.kv[0, :, some], self.kv[1, :, some], at, SCALE)
        pages = self.tokens // PAGE
        layer.finish(self.chains[:pages], self.ids[:pages], self.tokens)
        layer.end_prefill()
        if layer.placed is not None:
            layer.placed.place(budget, 0)

    def _reply(self, layer: TieredLayer) -> None:
        for at in range(self.tokens, self.tokens + REPLY):
            layer.step(self.queries[:, at], self.kv[0, :, at], self.kv[1, :, at], SCALE)
            if layer.pages.is_full:
                layer.seal(self.chains[at // PAGE], self.ids[at // PAGE])

    def _check(self, layer: TieredLayer) -> None:
        """What is attended to is what was kept. Raises RuntimeError if not. `razor` also reads a mean of the rest."""
        assert layer.placed is not None
        if layer.placed.placement.rest(layer.placed.kept.state) is not None:
            return
        query, none = self.queries[:, self.tokens].view(HEADS, QUERIES, DIM), self.kv[:, :, :0]
        out = layer.placed.attend(query, (none[0], none[1]), SCALE, layer.reader)[1]
        for head, row in enumerate(layer.placed.kept.positions):
            kept = row[row >= 0]
            run: tuple[Tensor, Tensor] = (self.kv[0, head : head + 1, kept], self.kv[1, head : head + 1, kept])
            worst = error(out[head], decode_attention(query[head : head + 1], [run], scale=SCALE)[0][0])
            if worst > _BOUND:
                raise RuntimeError(f"{layer.placed.placement.name} is off by {worst:.1e}: no time is reported")


def _bytes_kept(layer: TieredLayer) -> int:
    """What an index or a placement knows of the tokens, without what is learned once and does not grow."""
    placed = 0 if layer.placed is None else layer.placed.num_bytes
    fixed = sum(tensor.nbytes for tensor in layer.upkeep.learned().values())
    return placed + layer.index.state_bytes(layer.state) - fixed


def measure(tokens: int, keep: float, names: list[str], rounds: int) -> dict[str, Any]:
    bench, found = Bench(tokens), {name: Times() for name in (*BESIDE, *names)}
    for _ in range(rounds):
        for name, times in found.items():
            bench.round(name, int(keep * tokens), times)
    dense = found["dense"]
    rows = [
        {
            "reader": name, "prompt_ms": round(1e3 * times.median("prompt"), 2),
            "prompt_over_dense": round(times.median("prompt") / dense.median("prompt"), 3),
            "step_us": round(1e6 * times.median("step"), 1),
            "step_over_dense": round(times.median("step") / dense.median("step"), 3),
            "tokens_read": times.read, "bytes_per_token": round(times.num_bytes, 2),
        }
        for name, times in found.items()
    ]  # fmt: skip
    for row in rows:
        print("  ".join(f"{name} {value}" for name, value in row.items()), file=sys.stderr)
    return {"tokens": tokens, "keep": keep, "readers": rows}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--keep", default="0.1,0.25", help="comma-separated shares")
    parser.add_argument("--placement", default=",".join(sorted(PLACEMENTS)), help="comma-separated; default: all")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    names = asked.placement.split(",")
    Cache.folder = HERE / "build" / "compiled"  # as in a chat, an index learns in compiled loops
    Cache.folder.mkdir(parents=True, exist_ok=True)
    with torch.inference_mode():
        found = [measure(asked.tokens, float(keep), names, asked.rounds) for keep in asked.keep.split(",")]
    result = {
        "command": "python " + " ".join(sys.argv),
        "hardware": hardware(),
        "shape": {"kv_heads": HEADS, "query_heads": QUERIES * HEADS, "head_dim": DIM, "page_size": PAGE},
        "reply": REPLY,
        "rounds": asked.rounds,
        "texts": found,
    }
    write_result(result, asked.out)


if __name__ == "__main__":
    main()
