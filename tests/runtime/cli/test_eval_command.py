"""The reading suites from the command line: what they report, and what they refuse.

A random model knows nothing, so these tests check arithmetic and structure; what an index loses is
measured on trained models (test_recall.py and docs/results).
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from eval_runs import invoke, rows
from places import EXCERPT, RECALL
from recall import make_context, questions

from stratakv.runtime import KVConfig, Runtime
from stratakv.runtime.evaluation.harness import Harness
from stratakv.runtime.evaluation.suites import fidelity, needles
from stratakv.runtime.evaluation.variants import Variant


@pytest.fixture(autouse=True)
def _few_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of every variant in every context: what is done with the figures does not depend on how many there are."""
    monkeypatch.setattr(fidelity, "POSITIONS", 40)
    monkeypatch.setattr(needles, "NEEDLES", 2)


def test_one_context_is_undecided_wherever_it_is_shown(tiny_llama: Path, tmp_path: Path) -> None:
    """Neither met nor missed, and without an interval: in JSON, table, picture and exit code."""
    out, picture = tmp_path / "found.json", tmp_path / "found.svg"
    run = invoke(
        "--suite", "fidelity", "-m", tiny_llama, "--texts", EXCERPT, "--samples", 1, "--ctx", 512, "--budget", 176,
        "--out", out, "--plot", picture, "--strict",
    )  # fmt: skip
    assert run.exit_code == 3
    result = json.loads(out.read_text())
    row = rows(result)["bounds@176"]
    assert (result["passed"], row["misses"], len(row["undecided"])) == (None, [], 4)
    assert [row["kl_interval"] for row in result["variants"]] == [None] * 5
    assert "bounds@176: 4 of its marks undecided, the samples are too few" in run.stdout
    drawn = picture.read_text()
    assert "marks undecided, the samples are too few: bounds@176" in drawn
    assert "one context: no interval" in drawn


def test_teacher_forcing_sees_which_tokens_were_right(tmp_path: Path) -> None:
    """On a model that knows: each question's value is the likeliest token where it stands, not before or after."""
    ids, answers = make_context(np.random.default_rng(0), 1024, 32)
    with Runtime.load(RECALL, dtype="float32", kv=KVConfig(path=tmp_path, disk_gb=0)) as runtime:
        dense = Variant("dense", 256)
        harness = Harness(runtime, [dense])
        asked = questions(answers[:8])
        values = np.arange(len(asked)) % 3 == 2
        with harness.prefilled(ids) as past, harness.fork(dense, past) as sequence:
            logits = harness.ask(dense, sequence, asked[:2])
            right = harness.expected(dense, sequence, logits, asked[2:])
            assert right[values[2:]].all()
        with harness.prefilled(ids) as past, harness.fork(dense, past) as sequence:
            logits = harness.ask(dense, sequence, asked[:2])
            wrong = np.where(values, np.roll(asked, 3), asked)
            assert not harness.expected(dense, sequence, logits, wrong[2:])[values[2:]].any()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--suite", "speed"], "suite is one of exact, fidelity, needles, tasks; not 'speed'"),
        (["--suite", "fidelity", "--index", "nearest"], "index is one of auto, "),
        (["--suite", "exact", "--index", "nearest"], "index is one of auto, "),
        (["--suite", "tasks", "--index", "bounds:rank=8"], "index 'bounds' has no setting 'rank'"),
        (["--suite", "fidelity", "--samples", "0"], "samples is at least 1, not 0"),
        (["--suite", "fidelity", "--ctx", "100"], "ctx is at least 512 tokens, not 100"),
        (["--suite", "fidelity", "--ctx", "5000"], "--ctx 5000 is more than the 4096 tokens"),
        (["--suite", "fidelity", "--ctx", "592"], "budget 592 reads all of --ctx 592"),
        (["--suite", "fidelity", "--ctx", "600", "--budget", "0.999"], "budget 0.999 reads all of --ctx 600"),
        (["--suite", "needles", "--ctx", "1024"], "--ctx 1024 is too short: the told modes put"),
        (["--suite", "fidelity", "--budget", "some"], "budget is a comma-separated list of numbers, not 'some'"),
        (["--suite", "fidelity", "--budget", "50"], "budget is at least 112 tokens, not 50"),
        (["--suite", "tasks", "--tasks", "chess"], "no task 'chess'; known: niah_single_1"),
        (["--suite", "tasks", "--tasks", "cwe", "--ctx", "700"], "task cwe with --ctx 700: the shortest text"),
        (["--suite", "fidelity", "--plot", "picture.txt"], "a picture's name ends in .png"),
        (["--suite", "fidelity", "--out", "no/such/folder.json"], "its folder does not exist"),
    ],
)
def test_what_cannot_be_run_is_refused(tiny_llama: Path, arguments: list[str], says: str) -> None:
    run = invoke("-m", tiny_llama, "--texts", EXCERPT, *arguments)
    assert run.exit_code == 2
    assert run.stderr.count("\n") == 1
    assert says in run.stderr
    assert run.stdout == ""


def test_a_missing_text_is_told_before_a_model_is_loaded(tmp_path: Path) -> None:
    run = invoke("--suite", "needles", "-m", tmp_path / "no-model", "--texts", tmp_path)
    assert run.exit_code == 2
    assert run.stderr.count("\n") == 1
    assert "stratakv.runtime.evaluation.fetch" in run.stderr
