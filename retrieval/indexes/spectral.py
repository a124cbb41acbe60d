"""A few bytes of code for each token: query-whitened coefficients, product-quantised around local anchors."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from ...kernels.code_scores import code_scores
from ...kernels.pq_scores import pq_scores, pq_tables
from ...kernels.topk_pages import group_scores, topk_pages
from ..index import IndexOf, Rows, Selection
from ..scoring import CodeScoring, Counts, Ranking
from ..stored import Geometry, Stored
from ..structures.product_codebook import ProductEncoder, train_codebooks
from ..structures.whitening import Basis, captured_share, covariance, query_whitened_basis, second_moment

_RIDGE = 1e-3
"""Share of the mean eigenvalue added to the query moment, more while few queries are known: directions in which no
query was seen still count a little."""
_REMEMBERED = 512
"""Number of pages whose queries the second moment averages over; older ones fade."""
_RECENT = 16
"""Number of pages of queries that `captured` averages over."""
_DROP = 0.04
"""Fit anew when the basis captures this much less of recent queries' scores than of those it was fitted to. On real
text a basis fitted to the whole prompt loses 0.01, one fitted to its first 512 tokens 0.04 to 0.12."""
_MORE = 3
"""Fit anew when the queries that came since are those of this many times as many pages as were known: matters where few
were known."""
_FIRST = 4
"""Number of pages whose queries are enough to learn from."""
_SMALLEST_FIT = 512
"""Below this number of tokens, growing alone is no reason to fit anew."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SpectralOptions:
    """Settings of `SpectralIndex`. A token takes `parts` + 2 * head dim / `segment` bytes per KV head."""

    parts: int = 6
    """Bytes of code per token."""
    part_width: int = 8
    """Coefficients per byte of code; there are as many parts of this width as fit in the head dim."""
    segment: int = 64
    """Tokens that share an anchor."""

    def __post_init__(self) -> None:
        for name in self.__slots__:
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is at least 1, not {getattr(self, name)}")


@dataclass(slots=True)
class SpectralState:
    """The learned and the summarised keys of one sequence."""

    moment: Tensor
    """Second moment of queries, fp32 `[G, D, D]`."""
    cov: Tensor
    """Covariance of keys around their anchors, fp32 `[G, D, D]`."""
    basis: Basis
    codebooks: Tensor
    """fp16 `[G, M, 256, W/M]`."""
    anchors: Rows
    """bf16 `[G, segments, D]`: mean of the first page of each segment."""
    codes: Rows
    """uint8 `[G, n, M]`."""
    facts: Tensor
    """float64 `[5]`: tokens of the sequence at the fit, pages of queries at the fit, pages of queries since, captured
    share at the fit, captured share lately."""
    encoder: ProductEncoder
    turned: tuple[Tensor, Tensor] = field(init=False)
    """`of_queries` fp32 `[G, W, D]` and codebooks fp32 `[G, M, W/M, 256]`, as compiled loops read them."""

    def __post_init__(self) -> None:
        books = self.codebooks.float().transpose(2, 3).contiguous()
        self.turned = self.basis.of_queries.transpose(1, 2).contiguous(), books

    @property
    def num_queried(self) -> float:
        """Number of pages whose queries `moment` averages over."""
        return min(float(self.facts[1] + self.facts[2]), _REMEMBERED)


class SpectralIndex(IndexOf[SpectralState]):
    """Idea   keys that are neighbours in the text share what turns slowly under RoPE, so a key is its segment's anchor
             (the mean of the segment's first page, in bf16) and a rest. The rest is projected on the
             directions that matter to queries (`whitening`), a few dozen coefficients, which are
             product-quantised, one byte per eight. Every token is scored: q.anchor plus table look-ups. The KV head's
             tokens with the highest mean softmax over its query heads are read, exactly.
    For    most chats: nearest to `oracle` of all that keep less than keys.
    State  codes uint8 [G, n, 6] and anchors bf16 [G, n / 64, D]: 8 bytes per token and KV head at D = 64, half of
             page bounds (16). Fixed, per KV head: codebooks 256 * W fp16, bases 2 * D * W and moments
             2 * D * D fp32.
    Learns the query moment from the last query of every page, so spread over the prompt; later ones replace
             the oldest. Fitted anew when the sequence has doubled, or when the basis captures clearly less of
             recent queries' scores than it did. Without queries (pages that were adopted from a store):
             plain principal directions, until queries come.
    Cost   build O(n D W), append O(page D W), select O(n M), attention O(budget).
    Ours   no paper. Whitening by queries is A2ATS's idea (arXiv 2502.12665), codes per token PQCache's
             (arXiv 2407.12820); anchors, and their union, are not: docs/decisions/0009.
    """

    name = "spectral"
    Options = SpectralOptions
    learns = True
    uses_queries = True
    options: SpectralOptions

    def fit(
        self, keys: Tensor, positions: Tensor, queries: Tensor | None = None, previous: SpectralState | None = None
    ) -> SpectralState:
        groups, dim = keys.shape[0], keys.shape[2]
        moment, pages = self._moment(keys, queries, previous)
        anchors, segment = self._anchors(keys, positions)
        rest = keys.float() - anchors.float()[:, segment]
        cov = covariance(rest)
        parts, width = self._widths(dim)
        basis = query_whitened_basis(cov, moment, width, parts, ridge=_RIDGE + 1 / (1 + pages))
        codebooks = train_codebooks(rest @ basis.of_keys, parts)
        share = captured_share(moment, cov, basis)
        length = float(positions[-1]) + 1 if len(positions) else 0.0
        return SpectralState(
            moment, cov, basis, codebooks,
            Rows(keys.new_empty(groups, 0, dim, dtype=torch.bfloat16)),
            Rows(torch.empty(groups, 0, parts, dtype=torch.uint8, device=keys.device)),
            torch.tensor([length, pages, 0, share, share], dtype=torch.float64),
            ProductEncoder(codebooks),
        )  # fmt: skip

    def _moment(self, keys: Tensor, queries: Tensor | None, previous: SpectralState | None) -> tuple[Tensor, float]:
        """The second moment of queries so far `[G, D, D]`, and the number of pages it averages over."""
        if previous is not None and previous.num_queried:
            return previous.moment.clone(), previous.num_queried
        if queries is not None and queries.shape[2]:
            return second_moment(queries), float(min(queries.shape[2], _REMEMBERED))
        return torch.eye(keys.shape[2], dtype=torch.float32, device=keys.device).repeat(keys.shape[0], 1, 1), 0.0

    def _anchors(self, keys: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Anchors bf16 `[G, s, D]` of the segments in a sample, each from the segment's first sampled page, and the
        number of each token's anchor, int64 `[m]`."""
        size = self.params.page_size
        of_page = positions[::size] // self._segment
        begins = torch.ones(len(of_page), dtype=torch.bool, device=keys.device)
        begins[1:] = of_page[1:] != of_page[:-1]
        means = self._pages(keys).mean(2)[:, begins]
        return means.bfloat16(), (begins.cumsum(0) - 1).repeat_interleave(size)

    def _pages(self, keys: Tensor) -> Tensor:
        """`keys` `[G, n, D]` as fp32 `[G, pages, L, D]`."""
        groups, count, dim = keys.shape
        return keys.float().reshape(groups, count // self.params.page_size, self.params.page_size, dim)

    @property
    def _segment(self) -> int:
        """Tokens per segment: those of whole pages."""
        return max(1, self.options.segment // self.params.page_size) * self.params.page_size

    def append(self, state: SpectralState, keys: Tensor, queries: Tensor | None = None) -> None:
        size, start = self.params.page_size, state.codes.count
        pages = self._pages(keys)
        number = torch.arange(pages.shape[1], device=keys.device) + start // size
        per_segment = self._segment // size
        state.anchors.append(pages[:, number % per_segment == 0].mean(2).bfloat16())
        rest = pages - state.anchors.data[:, number // per_segment].float().unsqueeze(2)
        # Page by page: products of other shapes round otherwise, and a code must not depend on what it came with.
        coefficients = (rest @ state.basis.of_keys.unsqueeze(1)).flatten(1, 2)
        state.codes.append(state.encoder.encode(coefficients))
        if queries is not None and queries.shape[2]:
            self._remember(state, queries)

    def _remember(self, state: SpectralState, queries: Tensor) -> None:
        moment, new, held = second_moment(queries), queries.shape[2], state.num_queried
        state.moment = torch.lerp(state.moment, moment, new / (held + new)) if held else moment
        state.facts[2] += new
        lately = captured_share(moment, state.cov, state.basis)
        state.facts[4] += (lately - state.facts[4]) * min(1.0, new / _RECENT)

    def is_outgrown(self, state: SpectralState) -> bool:
        length, pages, since, then, lately = state.facts.tolist()
        is_longer = state.codes.count >= max(2 * length, _SMALLEST_FIT)
        knows_more = since >= max(_MORE * pages, _FIRST)
        looks_elsewhere = since >= _RECENT and lately < then - _DROP
        return bool(is_longer or knows_more or looks_elsewhere)

    def truncate(self, state: SpectralState, num_tokens: int) -> None:
        state.codes.truncate(num_tokens)
        state.anchors.truncate(-(-num_tokens // self._segment))

    def learned_by(self, state: SpectralState) -> tuple[Tensor, Tensor]:
        return state.moment, state.facts.clone()

    def unlearn(self, state: SpectralState, learned: tuple[Tensor, Tensor]) -> None:
        state.moment, facts = learned
        state.facts = facts.clone()

    def select(self, state: SpectralState, q: Tensor, num_tokens: int, budget: int) -> Selection:
        scores = group_scores(self.scores(state, q, num_tokens))
        count, sink, local = self.counts(budget)
        return Selection(topk_pages(scores, count, sink=sink, local=local), 1)

    def counts(self, budget: int) -> Counts:
        """How many tokens are read, and how many of them in any case."""
        sink = min(self.params.sink, budget)
        return Counts(budget, sink, min(self.params.local, budget - sink))

    def scoring(self, state: SpectralState, num_tokens: int) -> CodeScoring | None:
        basis, codebooks = state.turned
        return CodeScoring(
            unit=1, num_units=num_tokens, counts=self.counts, codes=state.codes.data[:, :num_tokens],
            anchors=state.anchors.data, segment=self._segment, basis=basis, codebooks=codebooks,
        )  # fmt: skip

    def ranking(self, state: SpectralState) -> Ranking:
        size, codes, anchors = self._segment, state.codes.buffer, state.anchors.buffer
        basis, codebooks = state.turned
        room = min(codes.shape[1], anchors.shape[1] * size)

        def scores(q: Tensor, num_units: Tensor) -> Tensor:
            return code_scores(q, basis, codebooks, codes[:, :room], anchors, num_units.expand(len(q)), segment=size)

        return Ranking(
            unit=1, sink=self.params.sink, local=self.params.local, room=room, scores=scores,
            reads=(codes, anchors, basis, codebooks),
        )  # fmt: skip

    def scores(self, state: SpectralState, q: Tensor, num_tokens: int) -> Tensor:
        """Estimates of q.k for the first `num_tokens` tokens, fp32 `[G, R, n]`, correct up to a constant per query."""
        size, whole = self._segment, num_tokens // self._segment
        anchors = state.anchors.data[:, : -(-num_tokens // size)].float()
        of_anchors = (q @ anchors.transpose(1, 2)).unsqueeze(-1)
        tables = pq_tables(q @ state.basis.of_queries, state.encoder.codebooks)
        scores = pq_scores(tables, state.codes.data[:, :num_tokens])
        scores[..., : whole * size].view(*scores.shape[:2], whole, size).add_(of_anchors[:, :, :whole])
        if whole * size < num_tokens:
            scores[..., whole * size :].add_(of_anchors[:, :, whole])
        return scores

    def export(self, state: SpectralState) -> dict[str, Tensor]:
        return {
            "moment": state.moment, "cov": state.cov, "of_keys": state.basis.of_keys,
            "of_queries": state.basis.of_queries, "codebooks": state.codebooks,
            "anchors": state.anchors.data, "codes": state.codes.data, "facts": state.facts,
        }  # fmt: skip

    def restore(self, tensors: dict[str, Tensor]) -> SpectralState:
        return SpectralState(
            tensors["moment"], tensors["cov"], Basis(tensors["of_keys"], tensors["of_queries"]), tensors["codebooks"],
            Rows(tensors["anchors"]), Rows(tensors["codes"]), tensors["facts"], ProductEncoder(tensors["codebooks"]),
        )  # fmt: skip

    def stored(self, of: Geometry, tensors: dict[str, Tensor]) -> dict[str, Stored]:
        groups, dim = of.groups, of.dim
        parts, width = self._widths(dim)
        return {
            "moment": Stored(torch.float32, (groups, dim, dim)),
            "cov": Stored(torch.float32, (groups, dim, dim)),
            "of_keys": Stored(torch.float32, (groups, dim, width)),
            "of_queries": Stored(torch.float32, (groups, dim, width)),
            "codebooks": Stored(torch.float16, (groups, parts, 256, width // parts)),
            "anchors": Stored(torch.bfloat16, (groups, -(-of.num_tokens // self._segment), dim)),
            "codes": Stored(torch.uint8, (groups, of.num_tokens, parts)),
            "facts": Stored(torch.float64, (5,), 0),
        }

    def _widths(self, dim: int) -> tuple[int, int]:
        """The number of code parts, and of coefficients in all of them together."""
        parts = min(self.options.parts, max(1, dim // self.options.part_width))
        return parts, min(dim // parts, self.options.part_width) * parts
