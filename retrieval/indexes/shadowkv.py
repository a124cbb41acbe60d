"""Low-rank keys (ShadowKV, arXiv 2410.21465): rank chunks by their mean key, fetch values only, rebuild keys."""

from __future__ import annotations

from dataclasses import dataclass
from math import gcd
from typing import NamedTuple

import torch
from torch import Tensor

from ...kernels.choose_units import choose_units
from ...kernels.decode_attention import decode_attention
from ...kernels.group_softmax import group_softmax
from ...kernels.key_scores import key_scores
from ...kernels.landmarks import landmarks
from ...kernels.low_rank import principal_directions, project, rebuild, rebuild_keys
from ...kernels.merge_states import merge_states
from ...kernels.topk_pages import group_scores, topk_pages
from ..index import IndexOf, Rows, Selection
from ..reading import Reader, Run, read_exactly
from ..scoring import Number, Ranking, Rebuilding, Rebuilt
from ..stored import Geometry, Stored

PAPER_RANK = 160
"""Directions that the paper keeps of keys 1024 wide; more do not raise accuracy."""
_LOWEST = torch.finfo(torch.float32).min
"""The score of chunks that are not to be ranked: finite, for a block of them has a softmax, too."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ShadowKVOptions:
    """Settings of `ShadowKVIndex`. Raises ValueError for a setting out of range."""

    rank: int = 0
    """Number of directions kept of a layer's keys, all KV heads together, at most G*D: with that many, keys are rebuilt
    exactly but for rounding. 0: the paper's 160, or half of G*D where that is less."""
    outliers: int = 48
    """Number of chunks per KV head whose keys are read and not rebuilt; at most a quarter of what sinks and the local
    window leave of a budget."""
    chunk: int = 8
    """Tokens per landmark: its greatest common divisor with the page size is used."""
    refine: int = 0
    """0: whole chunks are read, as in the paper. Otherwise single tokens are read: the best by their rebuilt keys out
    of the best chunks, which hold this many times the tokens that are wanted."""

    def __post_init__(self) -> None:
        if min(self.rank, self.outliers, self.refine) < 0 or self.chunk < 1:
            raise ValueError(
                "rank, outliers and refine are at least 0 and chunk at least 1, "
                f"not {self.rank}, {self.outliers}, {self.refine}, {self.chunk}"
            )


class LowRankKeys:
    """The low-rank form of a sequence's keys.

    Args:
        basis: fp32 `[G*D, r]`, orthonormal columns.
        seen: length of the sequence when the basis was learned, in tokens.
    """

    def __init__(self, basis: Tensor, seen: int, factors: Rows, means: Rows, cosines: Rows) -> None:
        self.basis, self.seen = basis, seen
        self.factors, self.means, self.cosines = factors, means, cosines

    @property
    def num_tokens(self) -> int:
        return self.factors.count


class ChosenUnits(NamedTuple):
    """The chosen units, int64 `[G, n]`, ascending: those whose keys are read, and those whose keys are rebuilt."""

    exact: Tensor
    rebuilt: Tensor
    keys: Tensor | None = None
    """Keys of the `rebuilt` units, where choosing them took their keys: fp32 `[G, n*unit, D]`."""


class ShadowKVIndex(IndexOf[LowRankKeys]):
    """Idea   un-rotated keys of all KV heads together have low rank: keep r coefficients of each, fetch only
             the values of what is chosen, and rebuild and rotate its keys. Chunks are ranked by their mean
             rotated key. Chunks that their mean stands for badly (outliers), sinks and the local window are
             read exactly.
    For    slow links and large budgets: keys are rebuilt near the device, values alone are moved.
    State  fp16 coefficients [n, r], fp16 means [G, n/c, D], fp32 cosines [G, n/c], fp32 basis [G*D, r].
             Llama-3-8B (G 8, D 128, r 160, c 8): 320 + 256 + 4 bytes per token, where bf16 keys take 2048,
             and 640 KiB per layer. Values are not held, nor is any key.
    Cost   fit O(m (G D)^2 + (G D)^3), append O(n G D r), select O(n/c G D), attention O(budget) and
             O(budget r D) per KV head to rebuild keys, `refine` times that with it; keys are moved only for what is
             read exactly.
    Differs  the basis comes from the Gram matrix of a sample of the sequence, by an eigenproblem instead of an
             SVD of all its keys, and is learned anew when the sequence has doubled. Generated tokens and later
             turns are projected on it (the paper's ShadowKV+) instead of being kept whole.
             Models with keys narrower than 320 keep half of the directions by default, not 160, which would save
             little. Coefficients and means are fp16, not bf16: the same bytes, an eighth of the rounding.
             Outliers are those chunks whose keys agree least with their mean when the query comes, not those
             that did at the end of the prompt. They, the sinks and the local window count against the budget,
             on top of which the paper reads them; so a small budget has fewer than 48. Sinks are forced; in
             the paper chunk 0 is, as a rule, an outlier. Chunks never cross a page: their size divides it.
             `refine`, not in the paper: what is read need not be whole chunks, most of whose tokens matter little.
             The keys of the best chunks are rebuilt, which moves nothing, and the best tokens among them are read.
             As in the paper, and unlike other indexes here, a chunk counts for what it is worth to the query
             head that wants it most: the maximum of their softmax over the chunks to be ranked, not the mean.
             Values are fetched at every step; what stays near the device is up to the tiers, where the paper
             keeps the last step's. Every layer is sparse, as in the paper.
    """

    name = "shadowkv"
    learns = True
    Options = ShadowKVOptions
    reads_exactly = False
    reads_values_alone = True

    def fit(
        self, keys: Tensor, positions: Tensor, queries: Tensor | None = None, previous: LowRankKeys | None = None
    ) -> LowRankKeys:
        groups, _, dim = keys.shape
        rank = self._rank(groups * dim)
        return LowRankKeys(
            principal_directions(self._unrotated(keys, positions), rank),
            int(positions[-1]) + 1 if len(positions) else 0,
            Rows(keys.new_zeros(1, 0, rank, dtype=torch.float16)),
            Rows(keys.new_zeros(groups, 0, dim, dtype=torch.float16)),
            Rows(keys.new_zeros(groups, 0, 1, dtype=torch.float32)),
        )

    def append(self, state: LowRankKeys, keys: Tensor, queries: Tensor | None = None) -> None:
        start = state.num_tokens
        positions = torch.arange(start, start + keys.shape[1], device=keys.device)
        factors = project(self._unrotated(keys, positions), state.basis, start=start)
        means, cosines = landmarks(keys, self._chunk)
        state.factors.append(_half(factors).unsqueeze(0))
        state.means.append(_half(means))
        state.cosines.append(cosines.unsqueeze(-1))

    def is_outgrown(self, state: LowRankKeys) -> bool:
        return state.num_tokens >= 2 * state.seen and state.num_tokens > 0

    def truncate(self, state: LowRankKeys, num_tokens: int) -> None:
        state.factors.truncate(num_tokens)
        state.means.truncate(num_tokens // self._chunk)
        state.cosines.truncate(num_tokens // self._chunk)

    def select(self, state: LowRankKeys, q: Tensor, num_tokens: int, budget: int) -> Selection:
        chunk, groups = self._chunk, q.shape[0]
        total, count = num_tokens // chunk, budget // chunk
        sink = min(self.params.units(self.params.sink, chunk), count)
        local = min(self.params.units(self.params.local, chunk), count - sink)
        free, end = count - sink - local, total - local
        cosines = state.cosines.data[:, sink:end, 0]
        outliers = cosines.topk(min(self.options.outliers, free // 4), largest=False).indices
        scores = q.float() @ state.means.data[:, sink:end].float().transpose(1, 2)
        scores.scatter_(2, outliers.unsqueeze(1).expand(-1, q.shape[1], -1), -torch.inf)
        # The order of the maxima of softmax; its logarithm does not underflow into ties.
        worth = torch.log_softmax(scores, -1).amax(1)
        wanted = free - outliers.shape[1]
        ranked = min(wanted * max(1, self.options.refine), end - sink - outliers.shape[1])
        rebuilt = worth.topk(ranked).indices.sort(-1).values + sink
        first = torch.arange(sink, device=q.device).expand(groups, -1)
        last = torch.arange(end, total, device=q.device).expand(groups, -1)
        exact = torch.cat([first, outliers.sort(-1).values + sink, last], -1)
        if not self.options.refine:
            return Selection(torch.cat([exact, rebuilt], -1).sort(-1).values, chunk, ChosenUnits(exact, rebuilt))
        parts = ChosenUnits(_tokens(exact, chunk), *self._best_tokens(state, q, rebuilt, wanted * chunk))
        return Selection(torch.cat([parts.exact, parts.rebuilt], -1).sort(-1).values, 1, parts)

    def _best_tokens(self, state: LowRankKeys, q: Tensor, chunks: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """Choose the `count` best tokens of `chunks` `[G, n]`. Returns them, ascending `[G, count]`, and their rebuilt
        keys."""
        keys = self._rebuilt(state, chunks, self._chunk)
        best = topk_pages(group_scores(q.float() @ keys.transpose(1, 2)), count, sink=0, local=0)
        wide = best.unsqueeze(-1).expand(-1, -1, keys.shape[2])
        return _tokens(chunks, self._chunk).gather(1, best), keys.gather(1, wide)

    def ranking(self, state: LowRankKeys) -> Ranking:
        """Chunks that are read exactly are ranked by their cosines, without a look at the query; the rest of a budget
        is for those that are rebuilt."""
        chunk, refine = self._chunk, self.options.refine
        sink, local = (self.params.units(tokens, chunk) for tokens in (self.params.sink, self.params.local))
        means, cosines, factors = (rows.buffer for rows in (state.means, state.cosines, state.factors))
        groups, room, dim = means.shape
        basis = state.basis.view(groups, dim, -1)

        def scores(q: Tensor, num_units: Tensor) -> Tensor:
            return -cosines[..., 0]

        def split(total: Number, wanted: Number) -> tuple[Number, Number]:
            free, lacks = wanted - sink - local, wanted < total
            most, quarter = self.options.outliers, free // 4
            outliers = quarter + (most - quarter) * (quarter > most)  # the less of both, of ints and tensors alike
            exact = total + (sink + local + outliers - total) * lacks
            return exact, (free - outliers) * lacks * (chunk if refine else 1)

        def choose(q: Tensor, num_units: Tensor, ids: Tensor, counts: Tensor, wanted: Tensor, most: int) -> Rebuilt:
            totals, each = num_units.expand(groups), chunk if refine else 1
            does_not = torch.arange(ids.shape[1], device=q.device) >= counts.unsqueeze(1)
            is_exact = torch.zeros(groups, room + 1, dtype=torch.bool, device=q.device)
            is_exact.scatter_(1, ids.masked_fill(does_not, room), value=True)
            ranked = key_scores(q, means, totals).masked_fill(is_exact[:, None, :room], _LOWEST)
            worth, times = group_softmax(ranked, totals, best=True), max(1, refine)
            few = torch.minimum(wanted // each * times, totals - counts)
            chunks, held = choose_units(worth, totals, few, most=most // each * times, sink=0, local=0)
            tokens, held_tokens = _tokens(chunks, chunk), held * chunk
            keys = self.layer.rotation.rotate(rebuild_keys(factors[0], basis, tokens, counts=held_tokens), tokens)
            if not refine:
                return Rebuilt(chunks, held, keys.contiguous())
            shares = group_softmax(q @ keys.transpose(1, 2), held_tokens)
            best, held = choose_units(shares, held_tokens, wanted.expand(groups), most=most, sink=0, local=0)
            return Rebuilt(tokens.gather(1, best), held, keys.gather(1, best.unsqueeze(-1).expand(-1, -1, dim)))

        return Ranking(
            unit=chunk, sink=sink, local=local, room=room, scores=scores,
            reads=(means, cosines, factors, basis, *self.layer.rotation.reads),
            rebuilding=Rebuilding(unit=1 if refine else chunk, split=split, choose=choose),
        )  # fmt: skip

    def attend(
        self, state: LowRankKeys, q: Tensor, chosen: Selection, reader: Reader, tail: Run, scale: float
    ) -> tuple[Tensor, Tensor]:
        parts: ChosenUnits = chosen.notes
        outs: list[Tensor] = []
        lses: list[Tensor] = []
        if parts.exact.shape[1] + tail[0].shape[1]:
            out, lse = read_exactly(q, parts.exact, chosen.unit, reader, tail, scale)
            outs, lses = [out], [lse]
        block = max(1, reader.max_tokens // chosen.unit)
        for begin in range(0, parts.rebuilt.shape[1], block):
            some = parts.rebuilt[:, begin : begin + block]
            known = parts.keys
            keys = self._rebuilt(state, some, chosen.unit) if known is None else known[:, begin : begin + block]
            out, lse = decode_attention(q, [(keys, reader.values(some, chosen.unit))], scale=scale)
            outs.append(out)
            lses.append(lse)
        return merge_states(outs, lses)

    def export(self, state: LowRankKeys) -> dict[str, Tensor]:
        return {
            "basis": state.basis,
            "seen": torch.tensor([state.seen]),
            "factors": state.factors.data,
            "means": state.means.data,
            "cosines": state.cosines.data,
        }

    def restore(self, tensors: dict[str, Tensor]) -> LowRankKeys:
        rows = [Rows(tensors[name]) for name in ("factors", "means", "cosines")]
        return LowRankKeys(tensors["basis"], int(tensors["seen"].item()), *rows)

    def stored(self, of: Geometry, tensors: dict[str, Tensor]) -> dict[str, Stored]:
        rank, chunks = self._rank(of.groups * of.dim), of.num_tokens // self._chunk
        return {
            "basis": Stored(torch.float32, (of.groups * of.dim, rank)),
            "seen": Stored(torch.int64, (1,), 0),
            "factors": Stored(torch.float16, (1, of.num_tokens, rank)),
            "means": Stored(torch.float16, (of.groups, chunks, of.dim)),
            "cosines": Stored(torch.float32, (of.groups, chunks, 1)),
        }

    def _rank(self, width: int) -> int:
        return min(self.options.rank, width) or min(PAPER_RANK, max(1, width // 2))

    @property
    def _chunk(self) -> int:
        return gcd(self.options.chunk, self.params.page_size)

    def _unrotated(self, keys: Tensor, positions: Tensor) -> Tensor:
        """Keys without their positions, fp32 `[n, G*D]`."""
        return self.layer.rotation.unrotate(keys, positions).transpose(0, 1).flatten(1)

    def _rebuilt(self, state: LowRankKeys, ids: Tensor, chunk: int) -> Tensor:
        """Rotated keys of the chunks `ids` `[G, n]`, fp32 `[G, n*c, D]`."""
        tokens = _tokens(ids, chunk)
        groups, rank = ids.shape[0], state.basis.shape[1]
        factors = state.factors.data[0].index_select(0, tokens.flatten()).view(groups, -1, rank)
        return self.layer.rotation.rotate(rebuild(factors, state.basis.view(groups, -1, rank)), tokens)


def _tokens(chunks: Tensor, chunk: int) -> Tensor:
    """The numbers of all tokens of chunks that have `chunk` tokens each: `[G, n]` -> `[G, n*chunk]`."""
    return (chunks.unsqueeze(-1) * chunk + torch.arange(chunk, device=chunks.device)).flatten(1)


def _half(rows: Tensor) -> Tensor:
    """`rows` in fp16, kept finite: a coefficient beyond its range must not turn attention into NaN."""
    most = torch.finfo(torch.float16).max
    return rows.clamp(-most, most).half()
