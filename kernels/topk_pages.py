"""Choose units (pages or tokens) by score, with the first and the last ones forced.

Shapes  scores [G, N] fp32  ->  ids [G, n] int64, ascending and unique in each row
Forced  the first `sink` and the last `local` units are always among the n; 0 <= sink + local <= n <= N
"""

from __future__ import annotations

import torch
from torch import Tensor


def group_scores(scores: Tensor) -> Tensor:
    """One score per KV head: the mean over its query heads of their softmax. [G, R, N] -> [G, N]."""
    return torch.softmax(scores, -1).mean(1)


def topk_pages(scores: Tensor, count: int, *, sink: int, local: int) -> Tensor:
    """Raises ValueError if the forced units do not fit in `count` or `count` exceeds N."""
    total = scores.shape[-1]
    if not sink + local <= count <= total:
        raise ValueError(f"expected sink + local <= count <= N, got {sink} + {local}, {count}, {total}")
    middle = scores[:, sink : total - local]
    chosen = middle.topk(count - sink - local, -1, sorted=False).indices.sort(-1).values + sink
    rows = scores.shape[0]
    first = torch.arange(sink, device=scores.device).expand(rows, -1)
    last = torch.arange(total - local, total, device=scores.device).expand(rows, -1)
    return torch.cat([first, chosen, last], -1)
