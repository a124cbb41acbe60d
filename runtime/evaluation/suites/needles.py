"""Needles: is one sentence found again, whoever wrote it and however late it is asked for?

Sentences with seven-digit numbers stand in a novel. The digits of each answer are teacher-forced and
every one is right or wrong, so that a short run decides. Modes:

    shared         the context is prefilled alone, before any question exists; each question starts
                   from it (SCBench's multi-request mode)
    turns          the questions are asked one after another, the right answers in between
    told_by_user   a later user turn states a number, more of the novel follows, then it is asked for
    told_by_model  the same, but the model's reply states it: its KV comes from sparse decoding

More of the novel is as long as the largest budget (at most half the context), so that no local window
reaches back over it.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from ...sequence import Sequence
from ..harness import Harness
from ..options import Options, Ticker
from ..statistics import paired
from ..tasks import Fit, invented, niah
from ..tasks.haystack import novel, scatter
from ..texts import Texts
from ..variants import CEILING, DENSE, FLOOR, Variant

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
    """One question to one variant."""

    mode: str
    context: int
    turn: int
    depth: float
    digits: np.ndarray
    """bool, one per digit token."""


def run(harness: Harness, options: Options, texts: Texts, ticker: Ticker) -> dict[str, Any]:
    """All modes on `options.samples` contexts of `options.ctx` tokens."""
    ticker.start(options.samples * (1 + 2 * len(harness.variants)))
    answers: dict[Variant, list[Answer]] = {variant: [] for variant in harness.variants}
    for context in range(options.samples):
        for variant, answer in _context(harness, options, texts, context, ticker):
            answers[variant].append(answer)
    rows = [_row(variant, found, answers) for variant, found in answers.items()]
    judged = [not row["misses"] for row in rows if row["misses"] is not None]
    return {"needles": NEEDLES, "variants": rows, "passed": all(judged) if judged else None}


def _context(
    harness: Harness, options: Options, texts: Texts, number: int, ticker: Ticker
) -> Iterator[tuple[Variant, Answer]]:
    rng = random.Random(f"{options.seed}/{number}")
    *hidden, told = _needles(rng, texts)
    most = max(variant.config(harness.runtime.config).budget_tokens(options.ctx) for variant in harness.variants)
    text, more = _text(rng, texts, harness, hidden, options.ctx - _OVERHEAD, min(most, options.ctx // 2))
    ids = harness.opening(text)
    cut = max(1, len(ids) - harness.count(more) - _OVERHEAD)

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
    """`NEEDLES` to hide, at depths drawn without replacement, and one to be told later."""
    keys, values = invented.unique(lambda: invented.word_key(rng, texts)), invented.unique(lambda: invented.number(rng))
    return [Needle(next(keys), next(values), depth) for depth in (*rng.sample(_DEPTHS, NEEDLES), 1.0)]


def _text(
    rng: random.Random, texts: Texts, harness: Harness, hidden: list[Needle], tokens: int, more_tokens: int
) -> tuple[str, str]:
    """A novel with needles, up to `tokens` long, and how it goes on for `more_tokens`."""
    stream = novel(rng, texts)
    placed = [(needle.depth, needle.statement) for needle in hidden]

    def begun(pieces: int) -> str:
        return "\n".join([niah.instruction(_KIND, is_single=False), " ".join(scatter(stream.take(pieces), placed))])

    def went_on(pieces: int) -> str:
        return " ".join(stream.take(count + pieces)[count:])

    count = Fit(tokens, harness.count).largest(begun)
    return begun(count), went_on(Fit(more_tokens, harness.count).largest(went_on))


def _ask(harness: Harness, variant: Variant, sequence: Sequence, needle: Needle, *, first: bool) -> np.ndarray:
    asked = niah.question(_KIND, needle.key, is_single=True)
    begins = niah.prefix(_KIND, needle.key, is_single=True) + ":"
    ids = harness.closing("\n" + asked, begins, first=True) if first else harness.turn(asked, begins)
    return _digits(harness, variant, sequence, harness.ask(variant, sequence, ids), needle.value)


def _digits(harness: Harness, variant: Variant, sequence: Sequence, logits: Tensor, value: str) -> np.ndarray:
    gold = harness.reply(f" {value}")
    right = harness.expected(variant, sequence, logits, gold)
    is_digit = [any(c.isdigit() for c in harness.runtime.tokenizer.decode([token])) for token in gold.tolist()]
    return np.compress(is_digit, right)


def _told(harness: Harness, variant: Variant, sequence: Sequence, mode: str, needle: Needle, more: str) -> np.ndarray:
    """A conversation: the novel so far, the statement, more of the novel, the question."""
    told, asked = needle.statement, f"Tell me a special magic number for {needle.key}."
    user, model = (told, " I have noted it.") if mode == "told_by_user" else (asked, " " + told)
    exchanges = [
        (harness.closing("\nTell me when you have read this.", "", first=True), " I have read it."),
        (harness.turn(user, ""), model),
        (harness.turn(f"Here is more of the text. {more}\nTell me when you have read this.", ""), " I have read it."),
    ]
    for said, replied in exchanges:
        harness.extend(sequence, said)
        harness.read(variant, sequence, harness.reply(replied))
    return _ask(harness, variant, sequence, needle, first=False)


def _row(variant: Variant, found: list[Answer], answers: dict[Variant, list[Answer]]) -> dict[str, Any]:
    dense = next(of for other, of in answers.items() if other.index == DENSE)
    modes = {
        mode: _compare([a for a in found if a.mode == mode], [a for a in dense if a.mode == mode]) for mode in MODES
    }
    turns = {turn: share - _by_turn(dense)[turn] for turn, share in _by_turn(found).items()}
    depths = {depth: share - _by_depth(dense)[depth] for depth, share in _by_depth(found).items()}
    return {
        "label": variant.label, "index": variant.index, "budget": variant.budget, "modes": modes,
        "turns": _by_turn(found), "depths": _by_depth(found),
        "worst_turn": min(turns.values()), "worst_depth": min(depths.values()),
        "misses": None if variant.index in (DENSE, FLOOR, CEILING) else _misses(modes, turns, depths),
    }  # fmt: skip


def _misses(modes: dict[str, Any], turns: dict[str, float], depths: dict[str, float]) -> list[str]:
    """Marks not met. Bins hold few digits each, so they may be further below dense than a mode."""
    marks = {f"{mode} within 1 point of dense": of["digits"]["difference"] >= -0.01 for mode, of in modes.items()}
    marks |= {f"turn {turn} within 5 points of dense": change >= -0.05 for turn, change in turns.items()}
    marks |= {f"depth {depth} within 5 points of dense": change >= -0.05 for depth, change in depths.items()}
    return [mark for mark, met in marks.items() if not met]


def _by_turn(answers: list[Answer]) -> dict[str, float]:
    """Share of right digits by turn."""
    return _by(answers, "turns", lambda answer: str(answer.turn))


def _by_depth(answers: list[Answer]) -> dict[str, float]:
    return _by(answers, "shared", lambda answer: f"{answer.depth:.1f}")


def _compare(found: list[Answer], dense: list[Answer]) -> dict[str, Any]:
    """Digits with their contexts as clusters; `whole` counts needles with every digit right."""
    clusters = np.concatenate([np.full(len(a.digits), a.context) for a in found])
    digits = paired(_all_digits(dense), _all_digits(found), clusters)
    whole = paired(
        np.array([float(a.digits.all()) for a in dense]),
        np.array([float(a.digits.all()) for a in found]),
        np.array([a.context for a in found]),
    )
    return {"digits": digits.as_dict(), "whole": whole.as_dict()}


def _all_digits(answers: list[Answer]) -> np.ndarray:
    return np.concatenate([a.digits for a in answers]).astype(float)


def _by(answers: list[Answer], mode: str, bin_of: Callable[[Answer], str]) -> dict[str, float]:
    bins: dict[str, list[Answer]] = {}
    for answer in answers:
        if answer.mode == mode:
            bins.setdefault(bin_of(answer), []).append(answer)
    return {name: float(_all_digits(bins[name]).mean()) for name in sorted(bins)}
