"""Sampling by hash collisions (MagicPIG, arXiv 2410.16179): attention from a weighted random part of the keys."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ...kernels.decode_attention import decode_attention
from ...kernels.merge_states import merge_states
from ...kernels.simhash import Planes, inclusion_probability, random_planes, simhash
from ..index import IndexOf, Selection
from ..layer import IndexedLayer
from ..params import IndexParams
from ..reading import Reader, Run
from ..stored import Geometry, Stored
from ..structures.collision_sample import LEAST_DEPTH, collision_sample
from ..structures.hash_tables import Array, HashTables

FLOOR = 1e-4
"""Added to a probability before its logarithm: it bounds the weight of a token that was unlikely to be sampled."""


@dataclass(frozen=True, kw_only=True, slots=True)
class MagicPIGOptions:
    """Settings of `magicpig`."""

    bits: int = 10
    """The most bits of a code that must agree (the paper's K)."""
    tables: int = 150
    """The most tables asked (the paper's L)."""
    seed: int = 0
    """Seed of the random planes; every layer draws its own."""
    estimate: int = 1
    """1: the sample speaks for all tokens, as in the paper. 0: plain attention over what any head sampled."""

    def __post_init__(self) -> None:
        if not LEAST_DEPTH <= self.bits <= 12:
            raise ValueError(f"bits is {LEAST_DEPTH} to 12, not {self.bits}")
        if not 2 <= self.tables <= 1000:
            raise ValueError(f"tables is 2 to 1000, not {self.tables}")
        if self.seed < 0:
            raise ValueError(f"seed is at least 0, not {self.seed}")
        if self.estimate not in (0, 1):
            raise ValueError(f"estimate is 0 or 1, not {self.estimate}")


@dataclass
class MagicPIGState:
    """Hash tables of the tokens so far, and the mean by which their keys were centred."""

    mean: Tensor
    """fp32 `[G, D]`, on the CPU."""
    fitted: int
    """Tokens of the sequence when the mean was taken."""
    tables: HashTables


class Weighing(NamedTuple):
    """The weights that each query head gives the tokens of a selection; all tensors are on the CPU."""

    always: Tensor
    """bool `[G, n]`: True for sinks and the local window, which every head sees unweighted."""
    seen: Tensor
    """bool `[G, R, n]`: True for tokens that this head sampled."""
    depth: Tensor
    """int64 `[G]`: number of bits that had to agree."""
    tables: Tensor
    """int64 `[G]`: number of tables asked."""


class MagicPIGIndex(IndexOf[MagicPIGState]):
    """Idea   hash every key by random hyperplanes, many times over; a query head samples the tokens that share a bucket
             with it in two tables at least. The angle gives the probability of that, and a sampled token's weight
             in the softmax is divided by it: unlike the best k tokens, the sample speaks for all others, too.
             Keys are centred first, or hardly any would lie near a query.
    For    attention that is spread over many tokens, which no best few stand for; on the CPU.
    State  sorted tables, 2 bytes per token, table and KV head (300 at 150 tables, whatever D; keys and values in
             bf16 take 256 at D = 64), bucket ends (1/16 of that at 10 bits and long contexts), the mean key. A
             session keeps the codes, as large as the tables, which are sorted from them without reading a key.
    Cost   append O(n D bits tables), a matrix product on the keys' device, and sorting on the CPU; select O(tokens
             in the matching buckets); attention O(budget), on the CPU. At 32K tokens, 3 heads of 3 queries,
             D = 64 and 2048 tokens read, both together take 0.55 of the time of dense attention on one core.
    Differs  a budget is kept. `collision_sample` chooses bits and tables anew for each KV head and query; the paper
             fixes them and reads what comes. That tables are chosen by the sample's size biases the output, by
             less than a tenth of its scatter.
             What one query head of a group samples is fetched for all of them, but a head gives weight only to its
             own sample, or the probabilities would not hold. Rows are padded to equal length by tokens that nobody
             sampled and nobody weighs.
             Generated tokens are hashed as well once their page is sealed (the paper keeps them on the GPU).
             The mean is that of a sample of the keys behind the sinks, taken anew whenever the sequence has
             doubled (the paper's is of the prompt but for its window): rotation makes it drift. Of SmolLM2's keys
             of a novel's first 7,000 tokens, the mean of 4,000 lies 0.3 of the spread of keys away from that of
             all, and makes outputs a quarter less exact. Whatever it is, it does not bias them.
             Planes are drawn per layer, with components rounded to 1/8, so that codes are exact.
             Every layer is sparse (the paper leaves one in sixteen dense).
    """

    name = "magicpig"
    learns = True
    Options = MagicPIGOptions
    reads_exactly = False
    attends_on_host = True

    def __init__(self, params: IndexParams, layer: IndexedLayer, options: Any) -> None:
        super().__init__(params, layer, options)
        self._planes: dict[tuple[int, torch.device], Planes] = {}

    def _planes_for(self, vectors: Tensor) -> Planes:
        """The hyperplanes for vectors of this dimension, on their device."""
        dim, device = vectors.shape[-1], vectors.device
        if (dim, device) not in self._planes:
            seed = self.options.seed + self.layer.number
            self._planes[dim, device] = random_planes(dim, self.options.bits, self.options.tables, seed).to(device)
        return self._planes[dim, device]

    def fit(
        self, keys: Tensor, positions: Tensor, queries: Tensor | None = None, previous: MagicPIGState | None = None
    ) -> MagicPIGState:
        middle = keys[:, positions >= self.params.sink].double()
        mean = middle.sum(1) / max(middle.shape[1], 1)
        codes = np.empty((keys.shape[0], self.options.tables, 0), dtype=np.int16)
        fitted = int(positions[-1]) + 1 if len(positions) else 0
        return MagicPIGState(mean.float().cpu(), fitted, HashTables(codes, self.options.bits))

    def append(self, state: MagicPIGState, keys: Tensor, queries: Tensor | None = None) -> None:
        centred = keys.float() - state.mean.to(keys.device).unsqueeze(1)
        state.tables.append(simhash(centred, self._planes_for(keys)).cpu().numpy())

    def is_outgrown(self, state: MagicPIGState) -> bool:
        return state.tables.count >= max(2 * state.fitted, 1)

    def truncate(self, state: MagicPIGState, num_tokens: int) -> None:
        state.tables.truncate(num_tokens)

    def select(self, state: MagicPIGState, q: Tensor, num_tokens: int, budget: int) -> Selection:
        sink = min(self.params.sink, budget)
        local = min(self.params.local, budget - sink)
        end = num_tokens - local
        query = q.cpu()
        wanted = simhash(query, self._planes_for(query)).transpose(1, 2).numpy()
        sample = collision_sample(state.tables, wanted, sink, end, budget - sink - local)
        taken = sample.tables[:, None]
        chosen = np.ones((len(wanted), num_tokens), dtype=np.bool_)
        chosen[:, sink:end] = sample.soonest[:, sink:] <= taken
        _pad_rows(chosen)
        ids = np.flatnonzero(chosen).reshape(len(wanted), -1) - np.arange(len(wanted))[:, None] * num_tokens
        always = (ids < sink) | (ids >= end)
        seen = np.take_along_axis(sample.second, np.minimum(ids, end - 1)[:, None], axis=2) <= taken[..., None]
        notes = (always, seen & ~always[:, None], sample.depth, sample.tables)
        return Selection(torch.from_numpy(ids).to(q.device), 1, Weighing(*map(torch.from_numpy, notes)))

    def attend(
        self, state: MagicPIGState, q: Tensor, chosen: Selection, reader: Reader, tail: Run, scale: float
    ) -> tuple[Tensor, Tensor]:
        """Estimate attention over all tokens on the CPU. Returns out `[G, R, D]` and lse fp32 `[G, R]`."""
        if not self.options.estimate:
            return super().attend(state, q, chosen, reader, tail, scale)
        query, weighing = q.float(), chosen.notes
        parts = [decode_attention(query, [tail], scale=scale)] if tail[0].shape[1] else []
        for begin in range(0, chosen.ids.shape[1], reader.max_tokens):
            some = slice(begin, begin + reader.max_tokens)
            run = reader.keys_values(chosen.ids[:, some], 1)
            seen = weighing._replace(always=weighing.always[:, some], seen=weighing.seen[:, :, some])
            parts.append(_attend_sampled(query, run, state.mean, seen, scale))
        out, lse = merge_states([out for out, _ in parts], [lse for _, lse in parts])
        return out.to(q.dtype), lse

    def export(self, state: MagicPIGState) -> dict[str, Tensor]:
        codes = torch.from_numpy(state.tables.codes)
        return {"codes": codes, "mean": state.mean, "fitted": torch.tensor(state.fitted)}

    def restore(self, tensors: dict[str, Tensor]) -> MagicPIGState:
        codes, mean, fitted = tensors["codes"], tensors["mean"], int(tensors["fitted"])
        return MagicPIGState(mean.cpu(), fitted, HashTables(codes.cpu().numpy(), self.options.bits))

    def stored(self, of: Geometry, tensors: dict[str, Tensor]) -> dict[str, Stored]:
        shape = (of.groups, self.options.tables, of.num_tokens)
        return {
            "codes": Stored(torch.int16, shape, 0, 1 << self.options.bits),
            "mean": Stored(torch.float32, (of.groups, of.dim)),
            "fitted": Stored(torch.int64, (), 0),
        }

    def state_bytes(self, state: MagicPIGState) -> int:
        """Bytes that a session keeps of the state, counted without unsorting the tables."""
        groups, tables, count = state.tables.shape
        return groups * tables * count * 2 + state.mean.nbytes + 8


def _pad_rows(chosen: Array) -> None:
    """Choose the first tokens that are not yet chosen, until all rows of bool `[G, n]` hold equally many."""
    counts = chosen.sum(1)
    first = chosen[:, : counts.max()]
    missing = (counts.max() - counts)[:, None]
    first |= np.cumsum(~first, axis=1) <= missing


def _attend_sampled(query: Tensor, run: Run, mean: Tensor, weighing: Weighing, scale: float) -> tuple[Tensor, Tensor]:
    """Softmax of `query` fp32 `[G, R, D]` over the tokens of one run that each head sees. A sampled token weighs the
    more, the less likely it was sampled. A head that sees nothing has lse -inf and out 0."""
    keys = run[0].float() - mean.unsqueeze(1)
    dots = query @ keys.transpose(1, 2)
    norms = query.norm(dim=-1).unsqueeze(-1) * keys.norm(dim=-1).unsqueeze(1)
    cosine = dots / norms.clamp(min=torch.finfo(torch.float32).tiny)
    likely = inclusion_probability(cosine, weighing.depth.view(-1, 1, 1), weighing.tables.view(-1, 1, 1))
    scores = (dots + query @ mean.unsqueeze(-1)) * scale
    sampled = (scores - torch.log(likely + FLOOR)).masked_fill(~weighing.seen, -torch.inf)
    scores = torch.where(weighing.always.unsqueeze(1), scores, sampled)
    lse = torch.logsumexp(scores, -1)
    weights = torch.exp(scores - lse.clamp(min=torch.finfo(torch.float32).min).unsqueeze(-1))
    return weights @ run[1].float(), lse
