"""The point before a conversation's last reply where nobody remembers it: after a session was resumed, in a fork."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from .layer_cache import LayerPoint, TieredLayer
from .sequence import GENERATED, Sequence, Snapshot

if TYPE_CHECKING:
    from .engine import Engine


def return_to_question(engine: Engine, sequence: Sequence, unfed: list[int]) -> tuple[Tensor, list[int]]:
    """Take the last reply out of `sequence`.

    Args:
        unfed: of the reply's tokens those that the sequence lacks.

    Returns the logits at its end then, fp32 `[vocabulary]`, and the tokens of the reply. All pages before stay as they
    are; with sliding-window layers, whose past is gone, they are computed again. Raises as `Engine.prefill`; the
    sequence is as it was then.
    """
    prompt = np.flatnonzero(sequence.origins != GENERATED)
    start = int(prompt[-1]) + 1 if len(prompt) else 0
    said = [*sequence.tokens[start:].tolist(), *unfed]
    before = engine.new_sequence(reach=sequence.past.reach)
    try:
        with engine.turn():
            _follow(before, sequence, start)
        logits = engine.prefill(before, sequence.tokens[before.num_tokens : start].copy()).logits
        assert logits is not None
        before.count_as(sequence)
    except BaseException:
        before.close()
        raise
    with engine.turn():
        sequence.close()
        sequence.become(before)
    return logits, said


def _follow(before: Sequence, sequence: Sequence, start: int) -> None:
    """To the last page's end before `start`, which is left out: its logits are wanted."""
    layers = [cache for cache in before.layers if isinstance(cache, TieredLayer)]
    if len(layers) < len(before.layers):
        return
    before.follow(sequence)
    count = max(0, start - 1) // before.page_size
    points = [_at_page(cache.snapshot(), count, before.page_size) for cache in layers]
    before.rollback(Snapshot(count * before.page_size, count, points, before.past))


def _at_page(point: LayerPoint, count: int, page_size: int) -> LayerPoint:
    """A point of a layer that only ever grew, when it had so many pages and no tail."""
    return point._replace(num_pages=count, tail=point.tail[:, :, :0], indexed=min(point.indexed, count * page_size))
