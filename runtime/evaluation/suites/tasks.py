"""Tasks: what a reader would notice. RULER-style synthetic tasks, look-ups in real books, and tasks that
need much of the context (`runtime/evaluation/tasks`).

All variants read every sample from one prefill. Two scores: `found`, the share of the reference strings
in a greedy reply (RULER's), and `forced`, the share of the right reply's tokens that are the likeliest
when all before them are right. The second moves long before the first does.
"""

from __future__ import annotations

import random
from contextlib import ExitStack
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from ...sequence import Sequence
from ..harness import Harness
from ..options import Options, Ticker
from ..statistics import Paired, paired
from ..tasks import TASKS, Fit, Sample, Task, select
from ..texts import Texts
from ..variants import CEILING, DENSE, FLOOR, Variant

_OVERHEAD = 64
"""Tokens kept free for the template's words."""
_DROP, _BOUND = 0.02, 0.03
"""The pooled drop that passes, and what its interval must stay within."""


class Score(NamedTuple):
    """One sample read by one variant."""

    found: float
    forced: np.ndarray
    """bool, one per token of the right reply."""
    is_empty: bool


def run(harness: Harness, options: Options, texts: Texts, ticker: Ticker) -> dict[str, Any]:
    """`options.samples` samples of every task, contexts filled up to `options.ctx` tokens."""
    tasks = select(options.tasks)
    ticker.start(len(tasks) * options.samples)
    scores: dict[Variant, dict[str, list[Score]]] = {v: {task.name: [] for task in tasks} for v in harness.variants}
    for task in tasks:
        for number in range(options.samples):
            ticker.advance(f"{task.name} {number + 1}/{options.samples}")
            rng = random.Random(f"{options.seed}/{task.name}/{number}")
            room = options.ctx - task.max_new_tokens - _OVERHEAD
            try:
                sample = task.build(rng, texts, Fit(room, harness.count))
            except ValueError as error:
                raise ValueError(f"task {task.name} with --ctx {options.ctx}: {error}") from error
            for variant, score in _read(harness, task, sample).items():
                scores[variant][task.name].append(score)
    dense = next(found for variant, found in scores.items() if variant.index == DENSE)
    rows = [_row(variant, found, dense) for variant, found in scores.items()]
    judged = [not row["misses"] for row in rows if row["misses"] is not None]
    return {"tasks": [task.name for task in tasks], "variants": rows, "passed": all(judged) if judged else None}


def _read(harness: Harness, task: Task, sample: Sample) -> dict[Variant, Score]:
    ids = harness.opening(sample.context)
    question = harness.closing("\n" + sample.question, sample.prefix, first=True)
    gold = harness.reply(sample.gold)
    forced, logits = {}, []
    with ExitStack() as open_forks, harness.prefilled(ids) as base:
        asked = [open_forks.enter_context(harness.fork(variant, base)) for variant in harness.variants]
        for variant, sequence in zip(harness.variants, asked, strict=True):
            logits.append(harness.ask(variant, sequence, question))
            with harness.fork(variant, sequence) as twin:
                forced[variant] = harness.expected(variant, twin, logits[-1], gold)
        limit = min(task.max_new_tokens, 16 + 3 * len(gold) // 2)
        replies = _replies(harness, asked, logits, limit, lambda reply: task.score(reply, sample.references) == 1)
    return {
        variant: Score(task.score(reply, sample.references), forced[variant], not reply.strip())
        for variant, reply in zip(harness.variants, replies, strict=True)
    }


def _replies(
    harness: Harness, sequences: list[Sequence], logits: list[Tensor], limit: int, is_complete: Any
) -> list[str]:
    """Greedy replies of all variants, one batch. A reply that has all it needs ends there: more words
    cannot lower its score."""
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


def _row(variant: Variant, scores: dict[str, list[Score]], dense: dict[str, list[Score]]) -> dict[str, Any]:
    by_task = {name: _compare(found, dense[name]) for name, found in scores.items()}
    gated = [name for name, of in by_task.items() if of["found"].gates]
    pooled = _compare(_join(scores, gated), _join(dense, gated))["found"] if gated else None
    judged = variant.index not in (DENSE, FLOOR, CEILING)
    return {
        "label": variant.label, "index": variant.index, "budget": variant.budget,
        "by_task": {name: {"intensive": TASKS[name].intensive, **_plain(of)} for name, of in by_task.items()},
        "all_tasks": _plain(_compare(_join(scores, list(scores)), _join(dense, list(scores)))),
        "gated": gated,
        "gated_found": pooled.as_dict() if pooled else None,
        "worst_task": min(gated, key=lambda name: by_task[name]["found"].difference) if gated else None,
        "misses": _misses(pooled, {name: by_task[name]["found"] for name in gated}) if pooled and judged else None,
    }  # fmt: skip


def _misses(pooled: Paired, by_task: dict[str, Paired]) -> list[str]:
    marks = {
        f"pooled drop <= {_DROP:.0%}": pooled.difference >= -_DROP,
        f"its interval within {_BOUND:.0%}": pooled.interval[0] >= -_BOUND,
        **{f"{name} not worse than dense": not of.is_worse for name, of in by_task.items()},
    }
    return [mark for mark, met in marks.items() if not met]


def _join(scores: dict[str, list[Score]], names: list[str]) -> list[Score]:
    return [score for name in names for score in scores[name]]


def _compare(found: list[Score], dense: list[Score]) -> dict[str, Any]:
    """Samples are the clusters; `forced` compares tokens, which are not independent within one."""
    samples = np.arange(len(found))
    clusters = np.repeat(samples, [len(score.forced) for score in found])
    return {
        "found": paired(np.array([s.found for s in dense]), np.array([s.found for s in found]), samples),
        "forced": paired(_tokens(dense), _tokens(found), clusters),
        "empty": sum(score.is_empty for score in found),
    }


def _plain(compared: dict[str, Any]) -> dict[str, Any]:
    return {name: of.as_dict() if isinstance(of, Paired) else of for name, of in compared.items()}


def _tokens(scores: list[Score]) -> np.ndarray:
    return np.concatenate([score.forced for score in scores]).astype(float)
