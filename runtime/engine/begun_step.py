"""A decode step of a batch between its computing and its place in the log.

    begin    every layer has a token, or will have it when the device is done
    settle   the tokens are known: those that stay join their sequences, and pages that they fill are published;
             the others are taken back

The host need not know the tokens before `settle`. A page that is full is not published before the host knows that its
last token stays.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from torch import Tensor

from .sequence import GENERATED, Sequence, StepPoint


class BegunStep:
    """A step that `compute` takes with these sequences, which belong to it until it is over: nobody may read, copy or
    continue one meanwhile.

    Args:
        compute: gives every layer its token and returns the logits, fp32 `[B, vocabulary]`, which the device need not
            have yet. An exception undoes the step.
    """

    def __init__(self, sequences: list[Sequence], compute: Callable[[], Tensor]) -> None:
        self._points = [(sequence, StepPoint.before(sequence)) for sequence in sequences]
        try:
            self.logits = compute()
        except BaseException:
            self.undo()
            raise

    def settle(self, tokens: list[int], stays: list[bool] | None = None) -> None:
        """End the step, now that its `tokens` are known.

        Args:
            stays: the sequences whose token joins them; the others are as they were. None: all.

        Raises CapacityError, or ConversationError if another call has changed a sequence; all are as they were then.
        """
        keeps = [True] * len(tokens) if stays is None else stays
        try:
            joining = []
            for (sequence, point), token, is_kept in zip(self._points, tokens, keeps, strict=True):
                if is_kept:
                    sequence.require_place(point.place)
                    joining.append((sequence, sequence.name_pages(np.array([token], dtype=np.uint32), GENERATED)))
            for sequence, named in joining:
                sequence.seal(named)
        except BaseException:
            self.undo()
            raise
        for sequence, named in joining:
            sequence.commit(named)
        left = [one for one, is_kept in zip(self._points, keeps, strict=True) if not is_kept]
        self._points = left
        self.undo()

    def undo(self) -> None:
        """Leave every sequence of a step that is not over as it was."""
        points, self._points = self._points, []
        for sequence, point in reversed(points):
            point.restore(sequence)
