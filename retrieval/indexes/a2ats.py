"""Query-aware codebooks (A2ATS, arXiv 2502.12665): score a table of codewords, and look every token up in it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ...kernels.codebook_scores import half_norms, nearest_codewords, shared_scores, union_scores
from ...kernels.topk_pages import topk_pages
from ..index import IndexOf, Rows, Selection
from ..layer import IndexedLayer
from ..params import IndexParams
from ..scoring import Ranking
from ..stored import Geometry, Stored

NEAR = 64
"""Tokens of the paper's window w; farther positions are approximated."""


@dataclass(frozen=True, kw_only=True, slots=True)
class A2ATSOptions:
    """Settings of `A2ATSIndex`: how it treats positions and the query heads of a KV head."""

    zones: int = 1
    """The number of distances that keys are scored at. 1: the paper's, one distance for all."""
    shared: int = 0
    """0, the paper's: the union of the query heads' own best tokens. 1: the tokens best by the mean of the heads'
    softmax."""

    def __post_init__(self) -> None:
        if not 1 <= self.zones <= 64:
            raise ValueError(f"zones is 1 to 64, not {self.zones}")
        if self.shared not in (0, 1):
            raise ValueError(f"shared is 0 or 1, not {self.shared}")


class A2ATSIndex(IndexOf[Rows]):
    """Idea   keys before RoPE do not depend on positions, so one codebook per KV head, learned offline, serves every
             text. A token is its codeword's number. A query, turned to the distance the keys are scored at, is
             multiplied with the codewords only; all tokens find their scores in that table.
    For    long texts for a model that was calibrated once: the smallest state, whatever the head size.
    State  codes [G, n] int16: 2 bytes per token and KV head, whatever D is. Codebooks, shared by all sequences:
             N (D + 1) + D^2 numbers per KV head, in fp32 on a CPU, which scores in fp32.
    Cost   build O(n D (D + N)), append O(page D (D + N)), select O(zones N D + n), attention O(budget).
    Differs  the union of the query heads' own top-k is cut to the budget: tokens in the order of the best rank any head
             gives them (the paper reads up to R times a share rho of the context).
             `zones`, not in the paper, which scores every key beyond its window of 64 at one distance (2048): the
             context is cut into zones whose bounds grow geometrically from 64, and keys are scored at their
             zone's middle. `shared`, not in the paper either: one ranking per KV head. Decision 0011 has
             what both are worth.
             The query's position is taken as the middle of the unsealed page, at most page_size / 2 off.
             1024 codewords instead of 4096 by default, learned from 16,384 tokens: sixteen keys per codeword
             (4096 are better, decision 0011).
             k-means starts from random keys and ends after 10 iterations (paper: k-means++, up to 300).
             Attention reads the chosen tokens wherever they lie; the paper computes it on the CPU. Sinks and local
             window are the runtime's (16 and 64; paper 8 and 64).
    """

    name = "a2ats"
    Options = A2ATSOptions
    needs_profile = True

    def __init__(self, params: IndexParams, layer: IndexedLayer, options: A2ATSOptions) -> None:
        super().__init__(params, layer, options)
        if layer.profile is None:
            raise ValueError(
                "index 'a2ats' needs a profile of the model; make one with: stratakv calibrate MODEL --text FILE"
            )
        profile = layer.profile
        self._codewords, self._center, self._metric = profile["codewords"], profile["center"], profile["metric"]
        if self._codewords.device.type == "cpu":
            self._codewords = self._codewords.float()
        self._norms = half_norms(self._metric, self._codewords)
        self._distance, self._digest = int(profile["distance"]), bytes(profile["digest"].tolist()).hex()

    @property
    def identity(self) -> str:
        """Identity with the profile's digest: codes mean nothing in another codebook."""
        return f"{super().identity} profile={self._digest}"

    def fit(self, keys: Tensor, positions: Tensor, queries: Tensor | None = None, previous: Rows | None = None) -> Rows:
        return Rows(torch.empty(keys.shape[0], 0, 1, dtype=torch.int16, device=keys.device))

    def append(self, state: Rows, keys: Tensor, queries: Tensor | None = None) -> None:
        positions = torch.arange(state.count, state.count + keys.shape[1], device=keys.device)
        plain = self.layer.rotation.unrotate(keys, positions) - self._center
        codes = nearest_codewords(plain, self._metric, self._codewords, self._norms)
        state.append(codes.to(torch.int16).unsqueeze(-1))

    def truncate(self, state: Rows, num_tokens: int) -> None:
        state.truncate(num_tokens)

    def select(self, state: Rows, q: Tensor, num_tokens: int, budget: int) -> Selection:
        sink = min(self.params.sink, budget)
        local = min(self.params.local, budget - sink)
        length = torch.tensor([num_tokens], device=q.device)
        table, cells = self._table(q, length), self._cells(state.data[:, :num_tokens], length)
        if self.options.shared:
            return Selection(topk_pages(shared_scores(table, cells), budget, sink=sink, local=local), 1)
        count = budget - sink - local
        scores = union_scores(table, cells[:, sink : num_tokens - local], count)
        ids = topk_pages(scores, count, sink=0, local=0) + sink
        first = torch.arange(sink, device=q.device).expand(len(ids), -1)
        last = torch.arange(num_tokens - local, num_tokens, device=q.device).expand(len(ids), -1)
        return Selection(torch.cat([first, ids, last], -1), 1)

    def ranking(self, state: Rows) -> Ranking:
        codes, sink, local = state.buffer, self.params.sink, self.params.local

        def scores(q: Tensor, num_units: Tensor) -> Tensor:
            table, place = self._table(q, num_units), torch.arange(codes.shape[1], device=q.device)
            nobody = table.shape[-1]  # the cell of tokens that do not count, which scores lowest
            counts = place < num_units
            if not self.options.shared:
                counts &= (place >= sink) & (place < num_units - local)
            cells = self._cells(codes, num_units).masked_fill(~counts, nobody)
            table = F.pad(table, (0, 1), value=-torch.inf)
            if self.options.shared:
                return shared_scores(table, cells)
            turns = union_scores(table, cells, nobody + 1).argsort(-1, descending=True)
            ranks = torch.empty(turns.shape, dtype=torch.float32, device=q.device)
            ranks.scatter_(1, turns, -place.float().expand(len(q), -1))
            return ranks.masked_fill(~counts, 0)

        reads = codes, self._codewords, self._center, *self.layer.rotation.reads
        return Ranking(unit=1, sink=sink, local=local, room=codes.shape[1], scores=scores, reads=reads)

    def _table(self, q: Tensor, length: Tensor) -> Tensor:
        """Scores `[G, R, zones * N]` of a query behind `length` tokens with every codeword at every distance."""
        groups, heads, dim = q.shape
        distances = self._zones(length)[1]
        plain = self.layer.rotation.unrotate(q, self._position(length).expand(heads))
        plain = plain.unsqueeze(2).expand(-1, -1, len(distances), -1).reshape(groups, -1, dim)
        turned = self.layer.rotation.rotate(plain, distances.repeat(heads))
        scores = torch.baddbmm(turned @ self._center.transpose(1, 2), turned, self._codewords.float().transpose(1, 2))
        return scores.view(groups, heads, -1)

    def _cells(self, codes: Tensor, length: Tensor) -> Tensor:
        """The cells of `length` tokens, int64 `[G, n]`: a codeword in a zone. `codes` is `[G, n, 1]`."""
        cells = codes[..., 0].long()
        if self.options.zones == 1:
            return cells
        apart = self._position(length) - torch.arange(cells.shape[1], device=codes.device)
        return cells + torch.searchsorted(self._zones(length)[0], apart) * self._codewords.shape[1]

    def _position(self, length: Tensor) -> Tensor:
        """Where a query stands behind `length` tokens, int64 `[1]`."""
        return length + self.params.page_size // 2

    def _zones(self, length: Tensor) -> tuple[Tensor, Tensor]:
        """The bounds between zones of `length` tokens, int64 `[zones - 1]`, and the distance that each zone's keys are
        scored at, int64 `[zones]`; nearest first. A key farther away than a bound is at least one zone further."""
        count = self.options.zones
        if count == 1:
            return length[:0], torch.full_like(length, self._distance)
        ratio = (length.double() / NEAR).clamp(min=2.0) ** (1 / count)
        zone = torch.arange(count, dtype=torch.float64, device=length.device)
        return (NEAR * ratio ** zone[1:]).round().long(), (NEAR * ratio ** (zone + 0.5)).round().long()

    def export(self, state: Rows) -> dict[str, Tensor]:
        return {"codes": state.data}

    def restore(self, tensors: dict[str, Tensor]) -> Rows:
        return Rows(tensors["codes"])

    def stored(self, of: Geometry, tensors: dict[str, Tensor]) -> dict[str, Stored]:
        return {"codes": Stored(torch.int16, (of.groups, of.num_tokens, 1), 0, self._codewords.shape[1])}
