"""Clusters and segments (LouisKV, arXiv 2510.11292): retrieve anew only where the meaning turns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ...kernels.topk_pages import group_scores, topk_pages
from ..index import FIT_TOKENS, IndexOf, Rows, Selection
from ..stored import Geometry, Stored
from ..structures.clusters import Clustered

KEYS_PER_CENTROID = 4
"""The fewest keys of the sample that a centroid is learned from."""
ROWS = ("codes", "means", "places")


@dataclass(frozen=True, kw_only=True, slots=True)
class LouisKVOptions:
    """Settings of `LouisKVIndex`. Raises ValueError for a setting out of range."""

    cluster: int = 16
    """Tokens per cluster of the prompt, on average."""
    similar: float = 0.9
    """The cosine of two steps' queries, the mean over heads, below which the meaning has turned."""

    def __post_init__(self) -> None:
        if self.cluster < 1 or not -1 <= self.similar <= 2:
            raise ValueError(f"cluster is at least 1 and similar -1 to 2, not {self.cluster} and {self.similar}")


class Thread(NamedTuple):
    """What the next step needs of the one before. Never changed."""

    last: Tensor
    """The last step's query, fp32 `[G, R, D]`."""
    turned: Tensor
    """The query at the last turn, which choices are made with until the next one."""
    border: Tensor
    """uint8 `[1]`: 1 if steps have been taken since the last page was sealed, 2 if the meaning turned at one."""


@dataclass(slots=True)
class LouisKVState:
    """What there is of a sequence, and what its last step left; None: no step yet."""

    tokens: Clustered
    thread: Thread | None = None


class LouisKVIndex(IndexOf[LouisKVState]):
    """Idea   neighbouring steps want the same tokens: choose anew only where the query's direction turns. Of a
             prompt, tokens that matter together lie apart, so k-means of keys gathers them; of a reply they lie
             side by side, in segments between two turns. Clusters and segments are ranked by their mean key.
    For    long replies on one subject: between turns of meaning nothing new is moved.
    State  centroids [G, C, D], int16 codes [G, n], mean keys of pages behind the prompt [G, p, D], in fp32; the
             queries of two steps. A prompt takes 2 + 4 D / 16 bytes per token and KV head.
    Cost   fit 5 iterations O(m C D), append O(n C D), select O((C + p) D + n), attention O(budget). What saves
             time is what is not moved: between turns the same tokens are read.
    Paper  arXiv 2510.11292
    Differs  reconstructed from the paper's abstract and a note; neither the threshold of a turn nor at which layer or
             head it is measured could be checked. Here each layer compares the rotated queries of two steps.
             Centroids are learned from a sample of the sequence, at most a fourth as many as it has keys: from
             16,384 tokens on clusters grow beyond 16. All is clustered anew when the sequence has doubled.
             Segments are whole pages; pages of later prompts are segments of their own until then. The last cluster
             is cut where the budget ends. Between turns tokens are ranked again by the query of the last turn, so
             that what was sealed since is found too. Layers that share keys choose at every step. Attention reads
             the chosen tokens wherever they lie; in the paper CPU memory holds all but these.
    """

    name = "louiskv"
    learns = True
    remembers = True
    Options = LouisKVOptions

    def fit(
        self, keys: Tensor, positions: Tensor, queries: Tensor | None = None, previous: LouisKVState | None = None
    ) -> LouisKVState:
        sampled = keys.shape[1]
        seen = int(positions[-1]) + 1 if sampled else 0
        most = max(min(sampled, 1), sampled // KEYS_PER_CENTROID)
        return LouisKVState(Clustered.learned(keys, seen, min(-(-seen // self.options.cluster), most)))

    def append(self, state: LouisKVState, keys: Tensor, queries: Tensor | None = None) -> None:
        if keys.shape[1]:
            thread, size = state.thread, self.params.page_size
            state.tokens.append(keys, size, joins=thread is not None and thread.border.item() == 1)
            if thread is not None:
                state.thread = thread._replace(border=torch.zeros_like(thread.border))

    def is_outgrown(self, state: LouisKVState) -> bool:
        held = state.tokens.codes.count + state.tokens.means.count * self.params.page_size
        return held >= 2 * state.tokens.seen and held > 0

    def truncate(self, state: LouisKVState, num_tokens: int) -> None:
        state.tokens.truncate(num_tokens, self.params.page_size)

    def learned_by(self, state: LouisKVState) -> Thread | None:
        return state.thread

    def unlearn(self, state: LouisKVState, learned: Thread | None) -> None:
        state.thread = learned

    def select(self, state: LouisKVState, q: Tensor, num_tokens: int, budget: int) -> Selection:
        thread = self._next(state.thread, q.float())
        units, unit_of = state.tokens.units(num_tokens, self.params.page_size)
        scores = group_scores(thread.turned @ units.transpose(1, 2)).gather(1, unit_of)
        sink = min(self.params.sink, budget)
        ids = topk_pages(scores, budget, sink=sink, local=min(self.params.local, budget - sink))
        return Selection(ids, 1, thread)

    def _next(self, thread: Thread | None, q: Tensor) -> Thread:
        """The thread with a step of query `q`. Nothing here waits for a GPU."""
        if thread is None:
            return Thread(q, q, torch.full((1,), 2, dtype=torch.uint8, device=q.device))
        turns = torch.cosine_similarity(q, thread.last, -1).mean() < self.options.similar
        border = torch.maximum(thread.border, 1 + turns.to(torch.uint8))
        return Thread(q, torch.where(turns, q, thread.turned), border)

    def remember(self, state: LouisKVState, chosen: Selection) -> None:
        state.thread = chosen.notes

    def export(self, state: LouisKVState) -> dict[str, Tensor]:
        tokens, none = state.tokens, state.tokens.centroids[:, :0]
        thread = state.thread or Thread(none, none, torch.zeros(1, dtype=torch.uint8, device=none.device))
        rows = {name: getattr(tokens, name).data for name in ROWS}
        return {"seen": torch.tensor([tokens.seen]), "centroids": tokens.centroids, **rows, **thread._asdict()}

    def restore(self, tensors: dict[str, Tensor]) -> LouisKVState:
        rows = [Rows(tensors[name]) for name in ROWS]
        thread = Thread(*(tensors[name] for name in Thread._fields))
        clustered = Clustered(int(tensors["seen"].item()), tensors["centroids"], *rows)
        return LouisKVState(clustered, thread if thread.last.shape[1] else None)

    def stored(self, of: Geometry, tensors: dict[str, Tensor]) -> dict[str, Stored]:
        found = {name: tensors.get(name, of.keys[:, :0]) for name in ("seen", "centroids", "last")}
        clustered = min(max([0, *found["seen"].flatten().long().tolist()]), of.num_tokens)
        pages = (of.num_tokens - clustered) // self.params.page_size
        count = min(found["centroids"].shape[1:2].numel(), FIT_TOKENS)
        heads = of.repeats if found["last"].numel() else 0
        sizes = {"centroids": count, "means": pages, "last": heads, "turned": heads}
        return {name: Stored(torch.float32, (of.groups, size, of.dim)) for name, size in sizes.items()} | {
            "seen": Stored(torch.int64, (1,), 0),
            "codes": Stored(torch.int16, (of.groups, clustered, 1), 0, count),
            "places": Stored(torch.int64, (1, pages, 1), 0, pages),
            "border": Stored(torch.uint8, (1,), 0, 3),
        }
