"""What an index costs beside dense attention: build, append, select and attend in one layer, over the context.

    python examples/bench/index_cost.py [--tokens 4096,8192,32768] [--budget 1024] [--index NAMES] [--out FILE]

One layer of SmolLM2's shape, bf16 KV in a store in host memory, read as decoding reads it (`TieredLayer`,
`PageReader`). Beside it, in the same rounds, dense attention over the same keys in plain tensors:
`kernels.decode_attention`, and PyTorch's in bf16 and in fp32. Ratios are a step's (select and attend) over the
fastest of the three, and over `decode_attention`'s. Build is fit and append of the whole context.

Keys are drawn, not a model's: a large mean, a walk in a few directions, noise, then RoPE. An index's time depends on
them little, its quality much, which is what `stratakv eval` is for. First every index must give dense
attention's result when the budget covers everything, and one that reads exactly that of dense attention over what it
chose; otherwise no time is reported.
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from builds import write_result
from torch import Tensor

from stratakv.kernels.decode_attention import decode_attention
from stratakv.retrieval import Index, IndexedLayer, IndexParams, Selection, make_index
from stratakv.retrieval.registry import INDEXES, index_class
from stratakv.retrieval.structures.codebook import learn_codebooks, query_metric
from stratakv.runtime.layers.tiered import TieredLayer
from stratakv.runtime.layers.workspace import Workspace
from stratakv.runtime.process.hardware import hardware
from stratakv.storage import ROOT, Arena, PageLayout, TieredStore, next_chain

T = TypeVar("T")
P = ParamSpec("P")

HEADS, QUERIES, DIM = 3, 3, 64
"""SmolLM2-135M: KV heads, query heads each, head dim."""
LAYOUT = PageLayout(num_heads=HEADS, page_size=16, head_dim=DIM, dtype="bfloat16")
PAGE = LAYOUT.page_size
TAIL = PAGE // 2
SCALE = DIM**-0.5
CPU = torch.device("cpu")
CODEWORDS, PROFILE_KEYS = 1024, 16_384
_BOUND = 1e-4
"""Of the largest magnitude: fp32 sums in another order."""
_WALK, _STEP = 8, 0.02
_WARM_UP = 3


class Rope:
    """SmolLM2's: dimension i turns with i + D/2."""

    reads = (100_000.0 ** (-torch.arange(0, DIM, 2) / DIM),)

    def rotate(self, keys: Tensor, positions: Tensor, sign: float = 1.0) -> Tensor:
        angles = positions.float().unsqueeze(-1) * self.reads[0]
        one, two = keys.float().chunk(2, -1)
        cos, sin = angles.cos(), sign * angles.sin()
        return torch.cat([one * cos - two * sin, two * cos + one * sin], -1)

    def unrotate(self, keys: Tensor, positions: Tensor) -> Tensor:
        return self.rotate(keys, positions, -1.0)


class Text:
    """Keys, values and queries of one layer over `length` tokens, whole pages, and a tail."""

    def __init__(self, length: int) -> None:
        draw = torch.Generator().manual_seed(0)

        def normal(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=draw)

        self.length, total = length, length + TAIL
        steps = normal(HEADS, total, _WALK) * math.sqrt(2 * _STEP)
        walk = torch.zeros(HEADS, total, _WALK)
        for at in range(1, total):
            walk[:, at] = (1 - _STEP) * walk[:, at - 1] + steps[:, at]
        mean, directions = 2 * normal(HEADS, 1, DIM), normal(HEADS, _WALK, DIM) / 2
        self.plain_keys = mean + walk @ directions + normal(HEADS, total, DIM) / 2
        """Before RoPE, fp32."""
        self.keys = Rope().rotate(self.plain_keys, torch.arange(total)).bfloat16()
        self.values = normal(HEADS, total, DIM).bfloat16()
        self._directions, self._normal = directions, normal

    def queries(self, positions: Tensor) -> Tensor:
        """`[G, R, n, D]`, rotated, not scaled: along the keys' walk, like queries that look for something."""
        count = len(positions)
        wanted = self._normal(HEADS, QUERIES, count, _WALK) @ self._directions.unsqueeze(1)
        return Rope().rotate(wanted + self._normal(HEADS, QUERIES, count, DIM) / 2, positions)

    def profile(self) -> dict[str, Tensor]:
        """What calibration would learn of such a layer: a codebook of un-rotated keys."""
        keys = Text(max(PROFILE_KEYS, CODEWORDS)).plain_keys
        queries = self.queries(torch.full((512,), 2048)).flatten(1, 2)
        books = learn_codebooks(keys, query_metric(queries.transpose(1, 2) @ queries), CODEWORDS)
        return {**books, "distance": torch.tensor(2048), "digest": torch.zeros(16, dtype=torch.uint8)}


def no_recovery(pids: list[int]) -> None:
    raise RuntimeError(f"pages {pids} are damaged, in memory")


@dataclass
class Case:
    """One index over the text, and the times of its calls in seconds."""

    spec: str
    index: Index
    layer: TieredLayer
    build_s: float
    read: int = 0
    times: dict[str, list[float]] = field(default_factory=lambda: {"append": [], "select": [], "attend": []})

    def median(self, call: str) -> float:
        """Microseconds."""
        return 1e6 * statistics.median(self.times[call][_WARM_UP:])


class Bench:
    """All indexes over one text in one store."""

    def __init__(self, length: int, specs: list[str], budget: int, profile: dict[str, Tensor]) -> None:
        self.text, self.budget = Text(length), budget
        tokens = np.arange(length, dtype=np.uint32).reshape(-1, PAGE)
        self.chains, chain = [], ROOT
        for page in tokens:
            chain = next_chain(chain, page)
            self.chains.append(chain)
        room = (length // PAGE + len(specs) + 8) * LAYOUT.page_bytes
        self.store = TieredStore(LAYOUT, 1, host=Arena("host", room, LAYOUT.page_bytes, CPU), codec="raw")
        self.workspace = Workspace(LAYOUT, PAGE, CPU)
        kv = torch.stack([self.text.keys, self.text.values], 1)[:, :, :length]
        pages = kv.reshape(HEADS, 2, -1, PAGE, DIM).permute(2, 0, 1, 3, 4).flatten(1)
        self.pids = self.store.put(0, self.chains, tokens, pages.contiguous().view(torch.uint8))
        self.page_queries = SCALE * self.text.queries(torch.arange(PAGE - 1, length, PAGE))
        self.cases = [self._case(spec, profile) for spec in specs]
        self.dense: dict[str, list[float]] = {"decode_attention": [], "sdpa_bf16": [], "sdpa_fp32": []}
        self.wide = (self.text.keys.float(), self.text.values.float())

    def _case(self, spec: str, profile: dict[str, Tensor]) -> Case:
        needs = index_class(spec)[0].needs_profile
        index = make_index(spec, IndexParams(page_size=PAGE), IndexedLayer(0, Rope(), profile if needs else None))
        layer = TieredLayer(
            0, self.store, index, self.workspace, lambda context: self.budget, no_recovery, repeats=QUERIES
        )
        queries = self.page_queries if index.uses_queries else None
        keys = self.text.keys[:, : self.text.length].contiguous()
        layer.upkeep.state, seconds = timed(index.build, keys, queries)
        self.store.retain(self.pids)
        layer.pages.pids, layer.upkeep.indexed = self.pids, self.text.length
        layer.pages.set_tail(torch.stack([self.text.keys, self.text.values])[:, :, self.text.length :])
        return Case(spec, index, layer, seconds)

    def check(self, case: Case) -> float:
        """The worst error, as a share of the largest value. Raises RuntimeError if it is too large."""
        layer, text = case.layer, self.text
        query = text.queries(torch.tensor([text.length + TAIL]))[:, :, 0]
        new = torch.stack([text.keys[:, -1], text.values[:, -1]])
        layer.budget_of = lambda context: context + 1
        with self.workspace.turns.taken():
            out = layer.step(query.reshape(-1, DIM), new[0], new[1], SCALE).view_as(query)
        layer.undo_step(TAIL, text.length + TAIL)
        layer.budget_of = lambda context: self.budget
        runs = [(text.keys, text.values), (new[0].unsqueeze(1), new[1].unsqueeze(1))]
        worst = error(out, decode_attention(query, runs, scale=SCALE)[0])
        chosen = self.select(case, query)
        if chosen.num_tokens + TAIL > self.budget and case.spec != "dense":
            raise RuntimeError(f"{case.spec} read {chosen.num_tokens} tokens of a budget of {self.budget}")
        if case.index.reads_exactly:
            tokens = (chosen.ids.unsqueeze(-1) * chosen.unit + torch.arange(chosen.unit)).flatten(1)
            place = tokens.unsqueeze(-1).expand(-1, -1, DIM)
            some = (text.keys.gather(1, place), text.values.gather(1, place))
            expected = decode_attention(query, [some, layer.tail], scale=SCALE)[0]
            worst = max(worst, error(self.attend(case, query, chosen), expected))
        if worst > _BOUND:
            raise RuntimeError(f"{case.spec} is off by {worst:.1e}: no time is reported")
        return worst

    def select(self, case: Case, query: Tensor) -> Selection:
        return case.index.select(case.layer.state, query.float() * SCALE, self.text.length, self.budget - TAIL)

    def attend(self, case: Case, query: Tensor, chosen: Selection) -> Tensor:
        return case.index.attend(case.layer.state, query, chosen, case.layer.reader, case.layer.tail, SCALE)[0]

    def round(self) -> None:
        """Every call once, in turn, so that a slow spell of the machine hits all alike."""
        text = self.text
        query = text.queries(torch.tensor([text.length + TAIL]))[:, :, 0].bfloat16()
        run = (text.keys, text.values)
        self.dense["decode_attention"].append(timed(decode_attention, query, [run], scale=SCALE)[1])
        for name, (keys, values) in (("sdpa_bf16", run), ("sdpa_fp32", self.wide)):
            wanted = query.reshape(1, -1, 1, DIM).to(keys.dtype)
            self.dense[name].append(timed(sdpa, wanted, keys.unsqueeze(0), values.unsqueeze(0))[1])
        page, queries = text.keys[:, :PAGE].contiguous(), self.page_queries[:, :, :1]
        for case in self.cases:
            state, index = case.layer.state, case.index
            case.times["append"].append(timed(index.append, state, page, queries if index.uses_queries else None)[1])
            index.truncate(state, text.length)
            chosen, seconds = timed(self.select, case, query)
            case.times["select"].append(seconds)
            case.times["attend"].append(timed(self.attend, case, query, chosen)[1])
            case.read = chosen.num_tokens + TAIL

    def result(self) -> dict[str, Any]:
        dense = {name: 1e6 * statistics.median(times[_WARM_UP:]) for name, times in self.dense.items()}
        rows = []
        for case in self.cases:
            step = case.median("select") + case.median("attend")
            learned = sum(tensor.nbytes for tensor in case.layer.upkeep.learned().values())
            kept = case.index.state_bytes(case.layer.state) - learned
            rows.append(
                {
                    "index": case.spec,
                    "tokens_read": case.read,
                    "build_ms_per_1k": 1e6 * case.build_s / self.text.length,
                    "append_page_us": case.median("append"),
                    "select_us": case.median("select"),
                    "attend_us": case.median("attend"),
                    "over_fastest_dense": step / min(dense.values()),
                    "over_decode_attention": step / dense["decode_attention"],
                    "index_bytes": kept / self.text.length / HEADS,
                    "index_fixed_bytes": learned / HEADS,
                }
            )
        return {"tokens": self.text.length, "dense_us": dense, "indexes": rows}


def sdpa(query: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(query, keys, values, scale=SCALE, enable_gqa=True)


def timed(call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> tuple[T, float]:
    """What the call gives, and its seconds."""
    started = time.perf_counter()
    found = call(*args, **kwargs)
    return found, time.perf_counter() - started


def error(found: Tensor, expected: Tensor) -> float:
    return float((found.float() - expected.float()).abs().max() / expected.float().abs().max())


def measure(length: int, specs: list[str], budget: int, rounds: int) -> dict[str, Any]:
    needs = any(index_class(spec)[0].needs_profile for spec in specs)
    bench = Bench(length, specs, budget, Text(PAGE).profile() if needs else {})
    worst = max(bench.check(case) for case in bench.cases)
    for _ in range(rounds + _WARM_UP):
        bench.round()
    found = {**bench.result(), "worst_error": worst}
    dense = ", ".join(f"{name} {us:.0f} us" for name, us in found["dense_us"].items())
    print(f"{length} tokens, {budget} read; dense: {dense}; results right within {worst:.0e}", file=sys.stderr)
    for row in found["indexes"]:
        print(
            f"  {row['index']:>12}: build {row['build_ms_per_1k']:7.2f} ms per 1K, append a page "
            f"{row['append_page_us']:5.0f} us, select {row['select_us']:5.0f} us, attend {row['attend_us']:5.0f} us, "
            f"{row['over_fastest_dense']:.2f} x dense",
            file=sys.stderr,
        )
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", default="4096,8192,32768", help="comma-separated context lengths, whole pages")
    parser.add_argument("--budget", type=int, default=1024)
    parser.add_argument("--index", default=",".join(sorted(INDEXES)), help="comma-separated; default: all")
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--threads", type=int, help="default: PyTorch's")
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    if asked.threads:
        torch.set_num_threads(asked.threads)
    specs = [spec.strip() for spec in asked.index.split(",")]
    lengths = [int(length) // PAGE * PAGE for length in asked.tokens.split(",")]
    with torch.inference_mode():
        found = [measure(length, specs, asked.budget, asked.rounds) for length in lengths]
    result = {
        "command": "python " + " ".join(sys.argv),
        "hardware": hardware(),
        "shape": {"kv_heads": HEADS, "query_heads": QUERIES * HEADS, "head_dim": DIM, "page_size": PAGE},
        "kv_dtype": LAYOUT.dtype,
        "budget": asked.budget,
        "rounds": asked.rounds,
        "contexts": found,
    }
    write_result(result, asked.out)


if __name__ == "__main__":
    main()
