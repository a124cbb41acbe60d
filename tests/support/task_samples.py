"""Samples of the evaluation's tasks, from the excerpts of its texts; a token is four characters."""

from __future__ import annotations

import random

from places import EXCERPT

from stratakv.runtime.evaluation.tasks import Fit, Sample, Task
from stratakv.runtime.evaluation.texts import Texts

TEXTS = Texts(EXCERPT)


def count(text: str) -> int:
    return len(text) // 4 + 1


def build(task: Task, seed: int, length: int, texts: Texts = TEXTS) -> Sample:
    return task.build(random.Random(f"{task.name}/{seed}"), texts, Fit(length, count))
