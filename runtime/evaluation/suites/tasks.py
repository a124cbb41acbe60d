"""Tasks: what a reader would notice. RULER-style synthetic tasks, look-ups in real books, tasks that need much
of the context, and questions late in a conversation (`runtime/evaluation/tasks`).

All variants read every sample's context from one prefill, of which the first words of a user may be a part; turns
between it and the question are given to each (`Harness.hear`). Two scores: `found`, the share of the reference strings
in a greedy reply (RULER's), and `forced`, the share of the right reply's tokens that are the likeliest
when all before them are right. The second moves long before the first does.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from ...engine.sequence import Sequence
from ..harness import Harness
from ..options import EvalOptions, Ticker
from ..statistics import Paired, judge, paired
from ..tasks import TASKS, Fit, Sample, Task, select
from ..texts import Texts
from ..variants import DENSE, Variant

_OVERHEAD = 64
"""Tokens kept free for the template's words around the context and the question."""
_DROP = 0.03
"""The most that a variant may lose against dense, over all gated tasks together."""


class Score(NamedTuple):
    """The scores of one sample read by one variant."""

    found: float
    forced: np.ndarray
    """True for each token of the right reply that was the likeliest, bool."""
    is_empty: bool


def run(harness: Harness, options: EvalOptions, texts: Texts, ticker: Ticker) -> dict[str, Any]:
    """Run `options.samples` samples of every task, with contexts filled up to `options.ctx` tokens."""
    tasks = select(options.tasks)
    samples = [(task, sample) for task in tasks for sample in _samples(task, harness, options, texts)]
    ticker.start(len(samples))
    scores: dict[Variant, dict[str, list[Score]]] = {v: {task.name: [] for task in tasks} for v in harness.variants}
    for task, sample in samples:
        ticker.advance(task.name)
        for variant, score in _read(harness, task, sample).items():
            scores[variant][task.name].append(score)
    dense = next(found for variant, found in scores.items() if variant.index == DENSE)
    return {"tasks": [task.name for task in tasks], "variants": [row(v, found, dense) for v, found in scores.items()]}


def _samples(task: Task, harness: Harness, options: EvalOptions, texts: Texts) -> Iterator[Sample]:
    overhead = _OVERHEAD + task.turns * len(harness.turn("", ""))
    fit = Fit(options.ctx - task.max_new_tokens - overhead, harness.count)
    for number in range(options.samples):
        try:
            yield task.build(random.Random(f"{options.seed}/{task.name}/{number}"), texts, fit)
        except ValueError as error:
            raise ValueError(f"task {task.name} with ctx {options.ctx}: {error}") from error


def _read(harness: Harness, task: Task, sample: Sample) -> dict[Variant, Score]:
    ids, last = _prompt(harness, sample)
    question = harness.question(sample.question, sample.prefix, first=not sample.earlier)
    gold = harness.reply(sample.gold)
    forced, logits = {}, []
    with ExitStack() as open_forks, harness.prefilled(ids) as base:
        asked = [open_forks.enter_context(harness.fork(variant, base)) for variant in harness.variants]
        for variant, sequence in zip(harness.variants, asked, strict=True):
            if len(last):
                found = harness.read(variant, sequence, last)[-1]
            harness.hear(variant, sequence, sample.earlier)
            if sample.earlier or not len(last):
                found = harness.ask(variant, sequence, question)
            logits.append(found)
            with harness.fork(variant, sequence) as twin:
                forced[variant] = harness.expected(variant, twin, logits[-1], gold)
        limit = min(task.max_new_tokens, 16 + 3 * len(gold) // 2)
        replies = _replies(harness, asked, logits, limit, lambda reply: task.score(reply, sample.references) == 1)
    return {
        variant: Score(task.score(reply, sample.references), forced[variant], not reply.strip())
        for variant, reply in zip(harness.variants, replies, strict=True)
    }


def _prompt(harness: Harness, sample: Sample) -> tuple[np.ndarray, np.ndarray]:
    """What is prefilled, and the prompt's last token, which each variant then reads as it reads a reply's; none if the
    prompt is the context alone."""
    ids = harness.opening(sample.context)
    if harness.asks != "prompt":
        return ids, ids[:0]
    said, prefix = (sample.earlier[0].user, "") if sample.earlier else (sample.question, sample.prefix)
    ids = np.concatenate([ids, harness.question(said, prefix, first=True)])
    return ids[:-1], ids[-1:]


def _replies(
    harness: Harness, sequences: list[Sequence], logits: list[Tensor], limit: int, is_complete: Any
) -> list[str]:
    """Make greedy replies of all variants, in one batch. A reply that has all it needs ends there: more words cannot
    lower its score."""
    engine, tokenizer = harness.runtime.engine, harness.runtime.tokenizer
    found: list[list[int]] = [[] for _ in sequences]
    rows = dict(enumerate(logits))
    while rows:
        going = []
        for i, row in rows.items():
            found[i].append(int(row.argmax()))
            ended = found[i][-1] in engine.model.eos_ids or len(found[i]) == limit
            if not ended and not is_complete(tokenizer.decode(found[i])):
                going.append(i)
        if not going:
            break
        after = engine.decode([sequences[i] for i in going], [found[i][-1] for i in going])
        rows = dict(zip(going, after, strict=True))
    return [tokenizer.decode(tokens, skip_special_tokens=True) for tokens in found]


def row(variant: Variant, scores: dict[str, list[Score]], dense: dict[str, list[Score]]) -> dict[str, Any]:
    """Make the result row of a variant from its scores by task and dense's."""
    by_task = {name: _compare(found, dense[name]) for name, found in scores.items()}
    gated = [name for name, of in by_task.items() if of["found"].gates]
    pooled: Paired | None = _compare(_join(scores, gated), _join(dense, gated))["found"] if gated else None
    together = _compare(_join(scores, list(scores)), _join(dense, list(scores)))
    found = {
        **variant.as_dict(),
        "by_task": {name: {"intensive": TASKS[name].intensive, **_as_dict(of)} for name, of in by_task.items()},
        "all_tasks": _as_dict(together),
        "gated": gated,
        "gated_found": pooled.as_dict() if pooled else None,
        "found_over_dense": _ratio(pooled) if pooled else None,
        "forced_over_dense": _ratio(together["forced"]),
        "worst_task": min(gated, key=lambda name: by_task[name]["found"].difference) if gated else None,
    }
    if pooled and not variant.is_yardstick:
        marks = {f"all gated tasks at most {_DROP:.0%} below dense": pooled.loses_at_most(_DROP)}
        marks |= {f"{name} at most 5 % below dense": by_task[name]["found"].loses_at_most(0.05) for name in gated}
        found |= judge(marks)
    return found


def _ratio(of: Paired) -> float | None:
    return of.other / of.dense if of.dense else None


def _join(scores: dict[str, list[Score]], names: list[str]) -> list[Score]:
    return [score for name in names for score in scores[name]]


def _compare(found: list[Score], dense: list[Score]) -> dict[str, Any]:
    """Compare with dense. Samples are the clusters; `forced` compares tokens, which are not independent within one."""
    samples = np.arange(len(found))
    clusters = np.repeat(samples, [len(score.forced) for score in found])
    return {
        "found": paired(np.array([s.found for s in dense]), np.array([s.found for s in found]), samples),
        "forced": paired(_tokens(dense), _tokens(found), clusters),
        "empty": sum(score.is_empty for score in found),
    }


def _as_dict(compared: dict[str, Any]) -> dict[str, Any]:
    return {name: of.as_dict() if isinstance(of, Paired) else of for name, of in compared.items()}


def _tokens(scores: list[Score]) -> np.ndarray:
    return np.concatenate([score.forced for score in scores]).astype(float)
