"""Probe queries (ActQKV, arXiv 2502.13542): steps ask together, unusual ones loudest, and stop where few pages do."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ...kernels.topk_pages import group_scores, topk_pages
from ..index import IndexOf, Rows, Selection
from ..stored import Geometry, Stored
from ..structures.clusters import page_means


@dataclass(frozen=True, kw_only=True, slots=True)
class ActQKVOptions:
    """Settings of `ActQKVIndex`. Raises ValueError for a setting out of range."""

    window: int = 4
    """Steps whose queries make the probe, the newest among them."""
    density: float = 0.6
    """The share of the pages' softmax that is recalled where the budget has room for it; 1: all of the budget."""

    def __post_init__(self) -> None:
        if not 1 <= self.window <= 256 or not 0 < self.density <= 1:
            raise ValueError(f"window is 1 to 256 and density above 0 to 1, not {self.window} and {self.density}")


@dataclass(slots=True)
class ActQKVState:
    """The mean key of each page `[G, p, D]`, fp32, and the queries of the last steps `[G, W * R, D]`, fp32."""

    means: Rows
    recent: Tensor


class ActQKVIndex(IndexOf[ActQKVState]):
    """Idea   some neighbouring tokens ask with one query, the probe: the mean of theirs, each weighed by its activation
             bias, how far it is from their plain mean. Pages are ranked by their mean key. Where scores are dense,
             a few pages hold most of their softmax, and the layer recalls no more than these.
    For    chats whose pages cost much to bring up: dense layers leave some of the budget unread.
    State  mean keys [G, pages, D] in fp32: 2 / page_size of keys in bf16; the queries of `window` - 1 steps.
    Cost   append O(n D), select O((window + pages) D), attention O(what is recalled), at most the budget.
    Paper  arXiv 2502.13542
    Differs  reconstructed from the paper's abstract: neither the measure of a token's bias (here the squared distance
             of its rotated queries, all heads together, from the window's mean, as a share of the window's sum) nor
             that of density (here the fewest pages that hold a share of the softmax) nor a page's representative
             (here the mean key) could be checked. The paper retrieves for windows of a prompt; prompts are read
             exactly here, and the window is that of the last steps. It spreads one budget over all layers; here each
             layer has the same, and those with dense scores leave some of it. All KV heads recall as many pages as
             the one that wants most. Sinks and local window are the runtime's, and no part of what density is
             measured on.
    """

    name = "actqkv"
    remembers = True
    Options = ActQKVOptions

    def fit(
        self, keys: Tensor, positions: Tensor, queries: Tensor | None = None, previous: ActQKVState | None = None
    ) -> ActQKVState:
        none = keys.new_zeros(keys.shape[0], 0, keys.shape[2], dtype=torch.float32)
        return ActQKVState(Rows(none), none)

    def append(self, state: ActQKVState, keys: Tensor, queries: Tensor | None = None) -> None:
        state.means.append(page_means(keys, self.params.page_size))

    def truncate(self, state: ActQKVState, num_tokens: int) -> None:
        state.means.truncate(num_tokens // self.params.page_size)

    def learned_by(self, state: ActQKVState) -> Tensor:
        return state.recent

    def unlearn(self, state: ActQKVState, learned: Tensor) -> None:
        state.recent = learned

    def select(self, state: ActQKVState, q: Tensor, num_tokens: int, budget: int) -> Selection:
        size = self.params.page_size
        total, count = num_tokens // size, budget // size
        sink = min(self.params.units(self.params.sink, size), count)
        local = min(self.params.units(self.params.local, size), count - sink)
        asked = torch.cat([state.recent, q.float()], 1)
        scores = group_scores(probe(asked, q.shape[1]) @ state.means.data[:, :total].transpose(1, 2))
        wanted = num_dense(scores[:, sink : total - local], self.options.density)
        ids = topk_pages(scores, min(count, sink + wanted + local), sink=sink, local=local)
        kept = asked[:, max(0, asked.shape[1] - (self.options.window - 1) * q.shape[1]) :]
        return Selection(ids, size, kept)

    def remember(self, state: ActQKVState, chosen: Selection) -> None:
        state.recent = chosen.notes

    def export(self, state: ActQKVState) -> dict[str, Tensor]:
        return {"means": state.means.data, "recent": state.recent}

    def restore(self, tensors: dict[str, Tensor]) -> ActQKVState:
        return ActQKVState(Rows(tensors["means"]), tensors["recent"])

    def stored(self, of: Geometry, tensors: dict[str, Tensor]) -> dict[str, Stored]:
        steps = min(tensors.get("recent", of.keys).shape[1:2].numel() // of.repeats, self.options.window - 1)
        return {
            "means": Stored(torch.float32, (of.groups, of.num_tokens // self.params.page_size, of.dim)),
            "recent": Stored(torch.float32, (of.groups, steps * of.repeats, of.dim)),
        }


def probe(asked: Tensor, repeats: int) -> Tensor:
    """The probe `[G, R, D]` of some tokens' queries `[G, n * R, D]`."""
    groups, count, dim = asked.shape
    each = asked.reshape(groups, count // repeats, repeats, dim)
    biases = (each - each.mean(1, keepdim=True)).square().sum((0, 2, 3))
    shares = torch.where(biases.sum() > 0, biases / biases.sum(), 1 / len(biases))
    return torch.einsum("n,gnrd->grd", shares, each)


def num_dense(scores: Tensor, density: float) -> int:
    """The fewest units that hold `density` of the scores `[G, n]`, none below 0, in every KV head; at least one."""
    held = scores.sort(-1, descending=True).values.cumsum(-1)
    return int((held < density * held[:, -1:]).sum(-1).max()) + 1
