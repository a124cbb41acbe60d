"""The reading suites from the command line: what they report, and what they refuse.

A random model knows nothing, so these tests check arithmetic and structure; what an index loses is
measured on trained models (test_recall.py and docs/results).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from recall import make_context, questions
from tiny_models import reference_model
from typer.testing import CliRunner, Result

from stratakv.runtime import KVConfig, Runtime
from stratakv.runtime.cli import app
from stratakv.runtime.evaluation.harness import Harness
from stratakv.runtime.evaluation.options import Options
from stratakv.runtime.evaluation.suites import fidelity
from stratakv.runtime.evaluation.texts import Texts
from stratakv.runtime.evaluation.variants import Variant

EXCERPT = Path(__file__).parents[1] / "data" / "texts"
RECALL = Path(__file__).parents[1] / "data" / "recall"


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["eval", *map(str, arguments)])


def evaluate(suite: str, model: Path, folder: Path, *arguments: object) -> dict[str, Any]:
    out = folder / "result.json"
    run = invoke("--suite", suite, "-m", model, "--texts", EXCERPT, "--out", out, *arguments)
    assert run.exit_code == 0, run.output
    result: dict[str, Any] = json.loads(out.read_text())
    for row in result["variants"]:
        assert row["label"] in run.output
        assert row["tokens_read"] <= row["budget"] or row["index"] == "dense"
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
        "fidelity", tiny_llama, tmp_path, "--samples", 4, "--ctx", 1024, "--budget", "176,336", "--plot", picture
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
    assert picture.read_bytes().startswith(b"\x89PNG")


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
        ((_, ids),) = fidelity.contexts(Harness(runtime, []), Options(512, 1), Texts(EXCERPT))
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
        "needles", tiny_llama, tmp_path, "--samples", 1, "--ctx", 2200, "--budget", 128, "--plot", tmp_path / "n.png"
    )
    for row in result["variants"]:
        assert {mode: of["digits"]["n"] for mode, of in row["modes"].items()} == {
            "shared": 28, "turns": 28, "told_by_user": 7, "told_by_model": 7,
        }  # fmt: skip
        assert row["modes"]["turns"]["whole"]["n"] == 4
        assert sorted(row["turns"]) == ["0", "1", "2", "3"]
        assert len(row["depths"]) == 4
    dense = rows(result)["dense"]["modes"]
    assert all(of["digits"]["only_dense"] == of["digits"]["only_other"] == 0 for of in dense.values())


def test_tasks_with_questions_read_exactly(tiny_llama: Path, tmp_path: Path) -> None:
    names = ["qa_1", "niah_single_2"]
    result = evaluate(
        "tasks", tiny_llama, tmp_path,
        "--samples", 2, "--ctx", 2500, "--budget", 176, "--tasks", ",".join(names), "--exact-question",
        "--plot", tmp_path / "t.svg",
    )  # fmt: skip
    assert result["question"] == "exact"
    assert result["tasks"] == names
    for row in result["variants"]:
        assert list(row["by_task"]) == names
        assert row["gated"] == []  # a random model finds nothing
        assert "misses" not in row
        assert row["all_tasks"]["found"]["n"] == 4


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--suite", "speed"], "suite is one of exact, fidelity, needles, tasks; not 'speed'"),
        (["--suite", "fidelity", "--index", "nearest"], "index is one of auto, bounds"),
        (["--suite", "exact", "--index", "nearest"], "index is one of auto, bounds"),
        (["--suite", "fidelity", "--samples", "0"], "samples is at least 1, not 0"),
        (["--suite", "fidelity", "--ctx", "100"], "ctx is at least 512 tokens, not 100"),
        (["--suite", "fidelity", "--ctx", "5000"], "--ctx 5000 is more than the 4096 tokens"),
        (["--suite", "fidelity", "--ctx", "592"], "--budget 592 reads all of --ctx 592"),
        (["--suite", "fidelity", "--ctx", "600", "--budget", "0.999"], "--budget 0.999 reads all of --ctx 600"),
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
