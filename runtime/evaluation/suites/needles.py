"""Needles: is one sentence found again, whoever wrote it and however late it is asked for?

Sentences with seven-digit numbers stand in a novel. The digits of each answer are teacher-forced and
every one is right or wrong, so that a short run decides. Modes:

    shared         the context is prefilled alone, before any question exists; each question starts
                   from it (SCBench's multi-request mode)
    turns          the questions are asked one after another, the right answers in between
    told_by_user   a later user turn states a number, more of the novel follows, then it is asked for
    told_by_model  the same, but the model's reply states it: its KV comes from sparse decoding

More of the novel is longer than the largest budget and the layers' sliding windows, so that only an index
reaches back over it. A user's turns are prefilled exactly, as in a chat; the model's, and the question, are
read through the index.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from ...engine.sequence import Sequence
from ..harness import Harness
from ..options import EvalOptions, Ticker
from ..statistics import Paired, judge, paired
from ..tasks import Fit, invented, niah
from ..tasks.haystack import novel, scatter
from ..texts import Texts
from ..variants import DENSE, Variant

MODES = ("shared", "turns", "told_by_user", "told_by_model")
NEEDLES = 4
_DEPTHS = [tenth / 10 for tenth in range(11)]
_KIND: niah.Kind = "numbers"
_OVERHEAD = 80 * NEEDLES
"""Tokens kept free for all questions, their answers and the template's words."""


class Needle(NamedTuple):
    key: str
    value: str
    depth: float

    @property
    def statement(self) -> str:
        return niah.needle(_KIND, self.key, self.value)


@dataclass(frozen=True, slots=True)
class Answer:
    """One variant's answer to one question."""

    mode: str
    context: int
    turn: int
    depth: float
    digits: np.ndarray
    """True for each digit token that was right, bool."""


def run(harness: Harness, options: EvalOptions, texts: Texts, ticker: Ticker) -> dict[str, Any]:
    """Run all modes on `options.samples` contexts of `options.ctx` tokens."""
    ticker.start(options.samples * (1 + 2 * len(harness.variants)))
    answers: dict[Variant, list[Answer]] = {variant: [] for variant in harness.variants}
    for context in range(options.samples):
        for variant, answer in _context(harness, options, texts, context, ticker):
            answers[variant].append(answer)
    dense = next(found for variant, found in answers.items() if variant.index == DENSE)
    return {"needles": NEEDLES, "variants": [_row(variant, found, dense) for variant, found in answers.items()]}


def _context(
    harness: Harness, options: EvalOptions, texts: Texts, number: int, ticker: Ticker
) -> Iterator[tuple[Variant, Answer]]:
    rng = random.Random(f"{options.seed}/{number}")
    *hidden, told = _needles(rng, texts)
    reach = _reach(harness, options)
    text, more = _text(rng, texts, harness, hidden, options.ctx - _OVERHEAD, reach)
    ids = harness.opening(text)
    cut = len(ids) - harness.count(more) - _OVERHEAD
    if cut < options.ctx // 4:
        raise ValueError(
            f"ctx {options.ctx} is too short: the told modes put {harness.count(more)} tokens, more than the largest "
            f"budget or sliding window ({reach}), between a statement and its question"
        )

    ticker.advance(f"context {number}: prefill")
    with harness.prefilled(ids[:cut]) as base:
        for variant in harness.variants:
            ticker.advance(f"context {number}: {variant.label}, told")
            for mode in ("told_by_user", "told_by_model"):
                with harness.fork(variant, base) as sequence:
                    yield variant, Answer(mode, number, 0, 1.0, _told(harness, variant, sequence, mode, told, more))
        harness.extend(base, ids[cut:])
        for variant in harness.variants:
            ticker.advance(f"context {number}: {variant.label}, asked")
            with harness.fork(variant, base) as read:
                for needle in hidden:
                    with harness.fork(variant, read) as sequence:
                        digits = _ask(harness, variant, sequence, needle, first=True)
                    yield variant, Answer("shared", number, 0, needle.depth, digits)
                for turn, needle in enumerate(hidden):
                    digits = _ask(harness, variant, read, needle, first=turn == 0)
                    yield variant, Answer("turns", number, turn, needle.depth, digits)


def _needles(rng: random.Random, texts: Texts) -> list[Needle]:
    """Make `NEEDLES` needles to hide, at depths drawn without replacement, and one to be told later."""
    keys, values = invented.unique(lambda: invented.word_key(rng, texts)), invented.unique(lambda: invented.number(rng))
    return [Needle(next(keys), next(values), depth) for depth in (*rng.sample(_DEPTHS, NEEDLES), 1.0)]


def _reach(harness: Harness, options: EvalOptions) -> int:
    """The number of tokens that a reader sees back without an index: the largest budget, or a sliding layer's
    window."""
    budgets = [variant.config(harness.runtime.config).budget_tokens(options.ctx) for variant in harness.variants]
    return max(*budgets, *(window or 0 for window in harness.runtime.model.windows))


def _text(
    rng: random.Random, texts: Texts, harness: Harness, hidden: list[Needle], tokens: int, reach: int
) -> tuple[str, str]:
    """Make a novel with needles, up to `tokens` long, and its continuation for more than `reach` tokens."""
    stream = novel(rng, texts)
    placed = [(needle.depth, needle.statement) for needle in hidden]

    def begun(pieces: int) -> str:
        return "\n".join([niah.instruction(_KIND, is_single=False), " ".join(scatter(stream.take(pieces), placed))])

    count = Fit(tokens, harness.count).largest(begun)
    more = 1
    while harness.count(" ".join(stream.take(count + more)[count:])) <= reach:
        more += 1
    return begun(count), " ".join(stream.take(count + more)[count:])


def _ask(harness: Harness, variant: Variant, sequence: Sequence, needle: Needle, *, first: bool) -> np.ndarray:
    asked = niah.question(_KIND, needle.key, is_single=True)
    begins = niah.prefix(_KIND, needle.key, is_single=True) + ":"
    ids = harness.question(asked, begins, first=first)
    return _digits(harness, variant, sequence, harness.ask(variant, sequence, ids), needle.value)


def _digits(harness: Harness, variant: Variant, sequence: Sequence, logits: Tensor, value: str) -> np.ndarray:
    gold = harness.reply(f" {value}")
    right = harness.expected(variant, sequence, logits, gold)
    is_digit = [any(c.isdigit() for c in harness.runtime.tokenizer.decode([token])) for token in gold.tolist()]
    return np.compress(is_digit, right)


def _told(harness: Harness, variant: Variant, sequence: Sequence, mode: str, needle: Needle, more: str) -> np.ndarray:
    """Hold a conversation: the novel so far, the statement, more of the novel, the question."""
    told, asked = needle.statement, f"Tell me a special magic number for {needle.key}."
    user, model = (told, " I have noted it.") if mode == "told_by_user" else (asked, " " + told)
    turns = [
        ("Tell me when you have read this.", " I have read it."),
        (user, model),
        (f"Here is more of the text. {more}\nTell me when you have read this.", " I have read it."),
    ]
    harness.hear(variant, sequence, turns)
    return _ask(harness, variant, sequence, needle, first=False)


def _row(variant: Variant, found: list[Answer], dense: list[Answer]) -> dict[str, Any]:
    modes = {mode: _compare(_of(found, mode), _of(dense, mode)) for mode in MODES}
    turns, depths = _bins(found, dense, "turns"), _bins(found, dense, "shared")
    row = {
        **variant.as_dict(),
        "modes": {mode: {name: of.as_dict() for name, of in compared.items()} for mode, compared in modes.items()},
        "turns": {name: of.as_dict() for name, of in turns.items()},
        "depths": {name: of.as_dict() for name, of in depths.items()},
        "worst_turn": min(of.difference for of in turns.values()),
        "worst_depth": min(of.difference for of in depths.values()),
    }
    if not variant.is_yardstick:
        marks = {f"{mode} at most 1 point below dense": of["digits"].loses_at_most(0.01) for mode, of in modes.items()}
        marks |= {f"turn {name} at most 5 points below": of.loses_at_most(0.05) for name, of in turns.items()}
        marks |= {f"depth {name} at most 5 points below": of.loses_at_most(0.05) for name, of in depths.items()}
        row |= judge(marks)
    return row


def _of(answers: list[Answer], mode: str) -> list[Answer]:
    return [answer for answer in answers if answer.mode == mode]


def _bins(found: list[Answer], dense: list[Answer], mode: str) -> dict[str, Paired]:
    """Count digits by turn, or by depth."""

    def name_of(answer: Answer) -> str:
        return str(answer.turn) if mode == "turns" else f"{answer.depth:.1f}"

    def those(answers: list[Answer], name: str) -> list[Answer]:
        return [answer for answer in _of(answers, mode) if name_of(answer) == name]

    names = sorted({name_of(answer) for answer in _of(found, mode)})
    return {name: _compare(those(found, name), those(dense, name))["digits"] for name in names}


def _compare(found: list[Answer], dense: list[Answer]) -> dict[str, Paired]:
    """Compare digits and whole numbers. Contexts are the clusters, since one lost needle loses seven digits."""
    clusters = np.array([answer.context for answer in found])
    of_digits = np.repeat(clusters, [len(answer.digits) for answer in found])
    return {
        "digits": paired(_digits_of(dense), _digits_of(found), of_digits),
        "whole": paired(_whole(dense), _whole(found), clusters),
    }


def _whole(answers: list[Answer]) -> np.ndarray:
    return np.array([float(answer.digits.all()) for answer in answers])


def _digits_of(answers: list[Answer]) -> np.ndarray:
    return np.concatenate([answer.digits for answer in answers]).astype(float)
