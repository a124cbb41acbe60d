"""The point before a conversation's last reply where nobody remembers it: after a session was resumed, or in a fork."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from ..engine.sequence import GENERATED, Sequence
from ..model.template import Template, as_array
from .points import Draft

if TYPE_CHECKING:
    from ..engine.engine import Engine


def forgotten_draft(
    engine: Engine, template: Template, sequence: Sequence, messages: list[dict[str, str]], unfed: list[int],
    system: str | None,
) -> Draft:  # fmt: skip
    """The point before the last reply of a conversation. `sequence` is there then. Raises as `Engine.prefill`.

    Args:
        unfed: tokens that join `sequence` with the next turn.
    """
    question, said = (message["content"] for message in messages[-2:])
    num_messages, is_first = len(messages) - 1, len(messages) == 2
    later, carried = template.later_form(said, system=system), list[int]()
    for _ in range(2 if later is not None else 0):  # `carried` decides what the turn goes on from
        assert later is not None
        log = np.concatenate([sequence.tokens, as_array(carried)])
        told = template.encode_told(question, later, log, system=system, is_first=is_first)
        if [*carried, *told] == unfed:  # the question is to be read again, too
            prompt = [*carried, *template.encode_message(question, log, system=system, is_first=is_first)]
            begin = sequence.snapshot()
            return Draft(begin, None, num_messages, unfed, begin, carried, as_array(prompt))
        carried = unfed[: max(0, len(unfed) - len(told))]
    logits, tokens = _return_to_question(engine, sequence, unfed)
    return Draft(sequence.snapshot(), logits, num_messages, tokens)


def _return_to_question(engine: Engine, sequence: Sequence, unfed: list[int]) -> tuple[Tensor, list[int]]:
    """Take the last reply out of `sequence`.

    Args:
        unfed: the reply's tokens that the sequence lacks.

    Returns the logits at its end then, fp32 `[vocabulary]`, and the tokens of the reply. All pages before stay as they
    are; with sliding-window or recurrent layers they are computed again, but for a beginning whose state is stored.
    Raises as `Engine.prefill`; the sequence is as it was then.
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
    """Let `before` follow `sequence` to the last page's end before `start`, leaving a token whose logits are wanted."""
    if all(layer.is_paged for layer in before.layers):
        before.follow(sequence)
        before.truncate(max(0, start - 1) // before.page_size)
