"""The tasks suite: how a task is read, what is scored, and what of dense an index keeps."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from eval_runs import evaluate
from places import EXCERPT

from stratakv.runtime import KVConfig, Runtime
from stratakv.runtime.engine.sequence import Sequence
from stratakv.runtime.evaluation.harness import Harness
from stratakv.runtime.evaluation.options import EvalOptions
from stratakv.runtime.evaluation.progress import Bar
from stratakv.runtime.evaluation.suites import tasks
from stratakv.runtime.evaluation.tasks import TASKS, Fit
from stratakv.runtime.evaluation.texts import Texts
from stratakv.runtime.evaluation.variants import Variant


def test_tasks_with_questions_read_exactly(tiny_llama: Path, tmp_path: Path) -> None:
    names = ["qa_1", "turns", "said"]
    result = evaluate(
        "tasks", tiny_llama, tmp_path,
        "--samples", 1, "--ctx", 1500, "--budget", 176, "--tasks", ",".join(names), "--question", "exact",
        "--plot", tmp_path / "t.svg",
    )  # fmt: skip
    assert result["question"] == "exact"
    assert result["tasks"] == names
    for row in result["variants"]:
        assert list(row["by_task"]) == names
        assert row["gated"] == []  # a random model finds nothing
        assert "misses" not in row
        assert row["all_tasks"]["found"]["n"] == 3
        assert row["found_over_dense"] is None
        forced = row["all_tasks"]["forced"]
        assert row["forced_over_dense"] == (forced["other"] / forced["dense"] if forced["dense"] else None)


@pytest.mark.parametrize("task", ["turns", "said", "niah_single_2"])
def test_a_task_is_read_as_a_conversation(
    tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, task: str
) -> None:
    """Context, earlier turns and question, in their order and between the template's words, within the length."""
    asked: list[tuple[str, int]] = []
    ask = Harness.ask

    def noting(self: Harness, variant: Variant, sequence: Sequence, ids: np.ndarray) -> torch.Tensor:
        tokens = [*sequence.tokens.tolist(), *ids.tolist()]
        asked.append((self.runtime.tokenizer.decode(tokens), len(tokens)))
        return ask(self, variant, sequence, ids)

    monkeypatch.setattr(Harness, "ask", noting)
    texts = Texts(EXCERPT)
    options = EvalOptions(1_500, 1, tasks=task)
    with Runtime.load(tiny_llama, dtype="float32", kv=KVConfig(path=tmp_path, disk_gb=0)) as runtime:
        harness = Harness(runtime, [Variant("dense", 176), Variant("bounds", 176)])
        tasks.run(harness, options, texts, Bar())
        overhead = 64 + TASKS[task].turns * len(harness.turn("", ""))
        fit = Fit(options.ctx - TASKS[task].max_new_tokens - overhead, harness.count)
    sample = TASKS[task].build(random.Random(f"0/{task}/0"), texts, fit)
    user, model = "<|im_end|>\n<|im_start|>user\n", "<|im_end|>\n<|im_start|>assistant\n"
    words = [sample.context + "\n"]
    for turn in sample.earlier:
        words[-1] += turn.user
        words += [model + turn.reply + user]
    expected = "<|im_start|>user\n" + "".join(words) + sample.question + model + sample.prefix
    assert [text for text, _ in asked] == [expected] * 2
    assert 0.8 * options.ctx < asked[0][1] <= options.ctx - TASKS[task].max_new_tokens


@pytest.mark.parametrize("task", ["turns", "niah_single_2"])
def test_a_question_may_be_a_part_of_the_prompt(
    tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, task: str
) -> None:
    """Then a placement chooses with it in view; nothing else differs: the words in their order, and dense's scores."""
    fork, seen, scores = Harness.fork, [], []

    @contextmanager
    def noting(self: Harness, variant: Variant, past: Sequence) -> Iterator[Sequence]:
        with fork(self, variant, past) as sequence:
            begun = sequence.tokens.tolist()
            yield sequence
            seen.append((begun, sequence.tokens.tolist()))

    monkeypatch.setattr(Harness, "fork", noting)
    with Runtime.load(tiny_llama, dtype="float32", kv=KVConfig(path=tmp_path, disk_gb=0)) as runtime:
        for question in ("exact", "prompt"):
            options = EvalOptions(1_500, 1, tasks=task, question=question)
            harness = Harness(runtime, [Variant("dense", 176)], question=question)
            scores.append(tasks.run(harness, options, Texts(EXCERPT), Bar())["variants"][0]["by_task"])
            del seen[-2]  # the twin that is taught
        asked = runtime.tokenizer.decode(seen[1][0][len(seen[0][0]) :])
    assert seen[0][1] == seen[1][1]
    assert scores[0] == scores[1]
    assert "What is the special magic number" in asked


def test_what_is_kept_of_dense_is_told_over_the_tasks_that_dense_can_do() -> None:
    def score(found: float, *forced: int) -> tasks.Score:
        return tasks.Score(found, np.array(forced, dtype=bool), is_empty=False)

    dense = {"qa_1": [score(1, 1, 1), score(0.5, 1, 0)], "vt": [score(0.25, 1, 1)]}
    other = {"qa_1": [score(0.75, 1, 0), score(0.5, 0, 0)], "vt": [score(1, 1, 1)]}
    row = tasks.row(Variant("bounds", 0.1), other, dense)
    assert row["gated"] == ["qa_1"]
    assert row["found_over_dense"] == pytest.approx(1.25 / 1.5)
    assert row["forced_over_dense"] == pytest.approx(3 / 5)
    assert tasks.row(Variant("dense", 0.1), dense, dense)["forced_over_dense"] == 1
