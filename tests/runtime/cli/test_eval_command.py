"""The reading suites from the command line: what they report, and what they refuse.

A random model knows nothing, so these tests check arithmetic and structure; what an index loses is
measured on trained models (test_recall.py and docs/results).
"""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from places import EXCERPT, RECALL
from recall import make_context, questions
from tiny_models import reference_model
from typer.testing import CliRunner, Result

from stratakv.runtime import KVConfig, Runtime
from stratakv.runtime.cli.app import app
from stratakv.runtime.engine.sequence import Sequence
from stratakv.runtime.evaluation import plot, report
from stratakv.runtime.evaluation.harness import Harness
from stratakv.runtime.evaluation.options import EvalOptions
from stratakv.runtime.evaluation.progress import Bar
from stratakv.runtime.evaluation.suites import fidelity, needles, tasks
from stratakv.runtime.evaluation.tasks import TASKS, Fit
from stratakv.runtime.evaluation.texts import Texts
from stratakv.runtime.evaluation.variants import Variant, variants


@pytest.fixture(autouse=True)
def _few_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of every variant in every context: what is done with the figures does not depend on how many there are."""
    monkeypatch.setattr(fidelity, "POSITIONS", 40)
    monkeypatch.setattr(needles, "NEEDLES", 2)


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["eval", *map(str, arguments)])


def evaluate(suite: str, model: Path, folder: Path, *arguments: object) -> dict[str, Any]:
    out = folder / "result.json"
    run = invoke("--suite", suite, "-m", model, "--texts", EXCERPT, "--out", out, *arguments)
    assert run.exit_code == 0, run.output
    result: dict[str, Any] = json.loads(out.read_text())
    for row in result["variants"]:
        assert row["label"] in run.output
        budget = KVConfig(budget=row["budget"]).budget_tokens(result["ctx"])
        assert row["tokens_read"] <= budget or row["index"] == "dense"
        assert row["kv_bytes_per_step"] > 0
    told = {"command", "hardware", "device", "version", "commit", "model", "dtype", "seed", "ctx", "samples", "texts"}
    assert told <= set(result)
    assert result["texts"] == "excerpt"
    return result


def rows(result: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {row["label"]: row for row in result["variants"]}


def test_fidelity(tiny_llama: Path, tmp_path: Path) -> None:
    picture = tmp_path / "fidelity.png"
    result = evaluate(
        "fidelity", tiny_llama, tmp_path, "--samples", 4, "--ctx", 640, "--budget", "176,336", "--plot", picture
    )
    found = rows(result)
    assert list(found) == [
        "dense", "window@112", "window@176", "bounds@176", "oracle@176", "window@336", "bounds@336", "oracle@336",
    ]  # fmt: skip
    dense = found["dense"]
    assert (dense["kl"], dense["top1_agree"], dense["nll_change"]) == (0, 1, 0)
    assert (dense["mass"], dense["output_error"], dense["recall"]) == pytest.approx((1, 0, 1), abs=1e-5)
    assert found["oracle@176"]["recall"] == 1
    assert found["oracle@336"]["kl"] < found["oracle@176"]["kl"] < found["window@176"]["kl"]
    assert found["oracle@176"]["mass"] > found["bounds@176"]["mass"] > found["window@176"]["mass"]
    assert [context["source"] for context in dense["by_context"]] == ["novel", "novel", "verses", "docs"]
    for row in found.values():
        low, high = row["kl_interval"]
        assert low <= row["kl"] <= high
        assert row["worst_context_kl"] == max(context["kl"] for context in row["by_context"])
        assert ("misses" in row) == (row["index"] == "bounds")
        assert row["perplexity_change"] == pytest.approx(row["perplexity"] / dense["perplexity"] - 1, abs=1e-6)
        best = found.get(f"oracle@{row['budget']}")
        expected = None if best is None or row is dense else row["kl"] / best["kl"]
        assert row["kl_over_oracle"] == expected
    assert found["window@112"]["kl_over_oracle"] is None
    assert found["bounds@176"]["kl_over_oracle"] > found["oracle@176"]["kl_over_oracle"] == 1
    assert {row["index"]: row["index_bytes"] for row in found.values()} == {
        "dense": 0, "window": 0, "bounds": 2 * 8 * 4 / 16, "oracle": 8 * 4,
    }  # fmt: skip
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_budgets_may_be_shares_of_the_context(tiny_llama: Path, tmp_path: Path) -> None:
    """5 % of 512 tokens is less than what is always read: that much is read instead, and there is no second floor."""
    result = evaluate("fidelity", tiny_llama, tmp_path, "--samples", 1, "--ctx", 512, "--budget", "0.4,0.05")
    found = rows(result)
    assert list(found) == [
        "dense", "window@0.05", "bounds@0.05", "oracle@0.05", "window@0.4", "bounds@0.4", "oracle@0.4",
    ]  # fmt: skip
    assert found["oracle@0.05"]["tokens_read"] == 112
    assert 112 - 16 < found["window@0.05"]["tokens_read"] < 112
    assert 0.39 * 512 - 64 < found["oracle@0.4"]["tokens_read"] < 0.4 * 512  # contexts are shorter at first
    assert found["bounds@0.4"]["kl_over_oracle"] == found["bounds@0.4"]["kl"] / found["oracle@0.4"]["kl"]


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


@pytest.mark.parametrize(("kl", "misses"), [(0.001, 0), (0.4, 3)])
def test_four_contexts_that_agree_decide(kl: float, misses: int) -> None:
    def row(kl: float, top1: float) -> dict[str, Any]:
        contexts = [{"kl": kl, "top1_agree": top1}] * 4
        return {"kl": kl, "worst_context_kl": kl, "by_context": contexts}

    marks = fidelity._marks(row(kl, 1 - kl), row(0.001, 1.0), row(0.5, 0.5))
    assert list(marks.values()).count(False) == misses
    assert None not in marks.values()


def test_many_indexes_make_a_legible_picture(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Eight lines that differ, and labels with settings that are not cut off in the table."""
    indexes = [f"bounds:rank={rank}:bits=3" for rank in range(6)]
    made = []
    for number, variant in enumerate(variants(indexes, [0.02, 0.05, 0.1, 0.25])):
        kl = 0.0 if number == 0 else 1 / number
        made.append(
            {**variant.as_dict(), "kl": kl, "kl_interval": (kl / 2, 2 * kl), "tokens_read": 4096 * variant.budget,
             "kl_over_oracle": 1.0 if number else None, "worst_context_kl": kl}
            | dict.fromkeys(("recall", "mass", "output_error", "kl_p99", "top1_agree"), 0.5)
            | {"perplexity_change": 0.25, "index_bytes": 8.0, "index_fixed_bytes": 2500.0}
        )  # fmt: skip
    result = {
        "suite": "fidelity", "model": "m", "dtype": "float32", "samples": 4, "ctx": 4096, "question": "sparse",
        "exempt_windows": [], "indexed_layers": 3, "variants": made,
    }  # fmt: skip
    plot.draw(result, tmp_path / "picture.svg")
    drawn = (tmp_path / "picture.svg").read_text()
    colours = {plot.colour(result, name) for name in ("window", *indexes, "oracle")}
    assert len(colours) == 8
    assert len({plot.marker(result, name) for name in indexes}) == 6
    assert all(drawn.count(colour) >= 4 for colour in colours)
    report.show(result)
    table = capsys.readouterr().out
    assert all(row["label"] in table for row in made)
    assert all(cell in table for cell in ("+25.0", " 8 ", " 2.5 "))


def test_the_same_seed_gives_the_same_figures(tiny_llama: Path, tmp_path: Path) -> None:
    def figures(*arguments: object) -> list[dict[str, Any]]:
        settings = ("--samples", 1, "--ctx", 512, "--budget", 176, *arguments)
        variants: list[dict[str, Any]] = evaluate("fidelity", tiny_llama, tmp_path, *settings)["variants"]
        return variants

    first = figures()
    assert figures() == first
    assert figures("--kv-dir", tmp_path / "kv") == first
    from_store = figures("--kv-dir", tmp_path / "kv")
    assert [row["kl"] for row in from_store] == pytest.approx([row["kl"] for row in first], rel=1e-3, abs=1e-9)
    assert figures("--seed", 1) != first


def test_dense_perplexity_is_that_of_transformers(tiny_llama: Path, tmp_path: Path) -> None:
    """Positions and targets of the fidelity suite, against one forward pass over the same tokens."""
    result = evaluate("fidelity", tiny_llama, tmp_path, "--samples", 1, "--ctx", 512, "--budget", 176)
    with Runtime.load(tiny_llama, dtype="float32", kv=KVConfig(path=tmp_path / "kv")) as runtime:
        ((_, ids),) = fidelity.contexts(Harness(runtime, []), EvalOptions(512, 1), Texts(EXCERPT))
    tokens = torch.from_numpy(ids.astype(np.int64)).unsqueeze(0)
    with torch.inference_mode():
        logits = reference_model(tiny_llama)(tokens).logits[0]
    loss = torch.nn.functional.cross_entropy(logits[-fidelity.POSITIONS - 1 : -1], tokens[0, -fidelity.POSITIONS :])
    assert rows(result)["dense"]["perplexity"] == pytest.approx(loss.exp().item(), rel=1e-4)


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


def test_needles(tiny_llama: Path, tmp_path: Path) -> None:
    result = evaluate(
        "needles", tiny_llama, tmp_path, "--samples", 1, "--ctx", 1800, "--budget", 128, "--plot", tmp_path / "n.png"
    )
    for row in result["variants"]:
        assert {mode: of["digits"]["n"] for mode, of in row["modes"].items()} == {
            "shared": 14, "turns": 14, "told_by_user": 7, "told_by_model": 7,
        }  # fmt: skip
        assert row["modes"]["turns"]["whole"]["n"] == 2
        assert sorted(row["turns"]) == ["0", "1"]
        assert len(row["depths"]) == 2
    dense = rows(result)["dense"]["modes"]
    assert all(of["digits"]["only_dense"] == of["digits"]["only_other"] == 0 for of in dense.values())


def test_tasks_with_questions_read_exactly(tiny_llama: Path, tmp_path: Path) -> None:
    names = ["qa_1", "turns", "said"]
    result = evaluate(
        "tasks", tiny_llama, tmp_path,
        "--samples", 1, "--ctx", 1500, "--budget", 176, "--tasks", ",".join(names), "--exact-question",
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
