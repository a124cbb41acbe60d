"""Query-aware codebooks (A2ATS, arXiv 2502.12665): score a table of codewords, and look every token up in it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ...kernels.codebook_scores import half_norms, nearest_codewords, shared_scores, union_scores
from ...kernels.topk_pages import topk_pages
from ..index import IndexOf, Rows, Selection
from ..layer import IndexedLayer
from ..params import IndexParams
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
        position = num_tokens + self.params.page_size // 2
        bounds, distances = self._zones(num_tokens)
        table = self._table(q, position, distances)
        cells = state.data[:, :num_tokens, 0].long()
        for bound in bounds:  # a cell is a codeword in a zone; those further away than a bound are one zone further
            cells[:, : max(0, position - bound)] += self._codewords.shape[1]
        if self.options.shared:
            return Selection(topk_pages(shared_scores(table, cells), budget, sink=sink, local=local), 1)
        count = budget - sink - local
        scores = union_scores(table, cells[:, sink : num_tokens - local], count)
        ids = topk_pages(scores, count, sink=0, local=0) + sink
        first = torch.arange(sink, device=q.device).expand(len(ids), -1)
        last = torch.arange(num_tokens - local, num_tokens, device=q.device).expand(len(ids), -1)
        return Selection(torch.cat([first, ids, last], -1), 1)

    def _table(self, q: Tensor, position: int, distances: list[int]) -> Tensor:
        """Scores `[G, R, zones * N]` of a query at `position` with every codeword at every distance."""
        groups, heads, dim = q.shape
        here = torch.full((heads,), position, device=q.device)
        there = torch.tensor(distances, device=q.device).repeat(heads)
        plain = self.layer.rotation.unrotate(q, here).unsqueeze(2).expand(-1, -1, len(distances), -1)
        turned = self.layer.rotation.rotate(plain.reshape(groups, -1, dim), there)
        scores = torch.baddbmm(turned @ self._center.transpose(1, 2), turned, self._codewords.float().transpose(1, 2))
        return scores.view(groups, heads, -1)

    def _zones(self, num_tokens: int) -> tuple[list[int], list[int]]:
        """The bounds between zones, in tokens, and the distance each zone's keys are scored at; nearest first."""
        count = self.options.zones
        if count == 1:
            return [], [self._distance]
        ratio = max(2.0, num_tokens / NEAR) ** (1 / count)
        bounds = [round(NEAR * ratio**zone) for zone in range(1, count)]
        return bounds, [round(NEAR * ratio ** (zone + 0.5)) for zone in range(count)]

    def export(self, state: Rows) -> dict[str, Tensor]:
        return {"codes": state.data}

    def restore(self, tensors: dict[str, Tensor]) -> Rows:
        return Rows(tensors["codes"])

    def stored(self, of: Geometry, tensors: dict[str, Tensor]) -> dict[str, Stored]:
        return {"codes": Stored(torch.int16, (of.groups, of.num_tokens, 1), 0, self._codewords.shape[1])}
