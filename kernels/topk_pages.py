"""Choose units (pages or tokens) by score, with the first and the last ones forced.

Shapes  scores [G, N] fp32  ->  ids [G, n] int64, ascending and unique in each row
Forced  the first `sink` and the last `local` units are always among the n; 0 <= sink + local <= n <= N
Ties    any of equal scores; on a CPU the first ones
Triton  none: this serves steps of which the host knows the lengths and waits for the ids. PyTorch's `topk` selects by
        radix, reading the scores a few times whatever `count` is. Decode that stays on the GPU: `choose_units`
CPU     PyTorch's `topk` carries an index along with every score. NumPy partitions bare scores with vector instructions;
        a comparison with the smallest chosen one then gives ids that are in order already.
"""

from __future__ import annotations

import torch
from torch import Tensor


def group_scores(scores: Tensor) -> Tensor:
    """One score per KV head: the mean over its query heads of their softmax. [G, R, N] -> [G, N]."""
    return torch.softmax(scores, -1).mean(1)


def topk_pages(scores: Tensor, count: int, *, sink: int, local: int) -> Tensor:
    """Choose `count` units by score. Raises ValueError if the forced units do not fit in `count` or `count` exceeds
    N."""
    total, rows = scores.shape[-1], scores.shape[0]
    if not sink + local <= count <= total:
        raise ValueError(f"expected sink + local <= count <= N, got {sink} + {local}, {count}, {total}")
    if scores.device.type == "cpu" and scores.dtype == torch.float32:
        found = _by_partition(scores, count, sink, local)
        if found is not None:
            return found
    middle = scores[:, sink : total - local]
    chosen = middle.topk(count - sink - local, -1, sorted=False).indices.sort(-1).values + sink
    first = torch.arange(sink, device=scores.device).expand(rows, -1)
    last = torch.arange(total - local, total, device=scores.device).expand(rows, -1)
    return torch.cat([first, chosen, last], -1)


def _by_partition(scores: Tensor, count: int, sink: int, local: int) -> Tensor | None:
    """`topk_pages` by partition on a CPU; None if there is nothing to choose or some scores are not numbers."""
    (rows, total), free = scores.shape, count - sink - local
    middle = scores[:, sink : total - local]
    if not rows or not 0 < free < middle.shape[1]:
        return None
    parted = middle.clone()
    parted.numpy().partition(-free, -1)
    least = parted[:, -free, None]
    chosen = torch.ones(scores.shape, dtype=torch.bool)
    best = chosen[:, sink : total - local]
    torch.ge(middle, least, out=best)
    places = _where(chosen)
    if len(places) != rows * count:  # equal scores at the border: the first of them
        above, at_border = middle > least, middle == least
        lacking = free - above.sum(-1, keepdim=True)
        best.copy_(above | (at_border & (at_border.cumsum(-1) <= lacking)))
        places = _where(chosen)
    if len(places) != rows * count:
        return None
    return places.view(rows, count) - torch.arange(0, rows * total, total).unsqueeze(1)


def _where(mask: Tensor) -> Tensor:
    """The places that are true in a flat mask, ascending; NumPy finds few of many fast."""
    return torch.from_numpy(mask.view(-1).numpy().nonzero()[0])
