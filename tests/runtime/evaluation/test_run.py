"""One run of a suite: what cannot be run is refused before anything is loaded, and a seed decides all of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from eval_runs import evaluate as evaluated
from places import EXCERPT

from stratakv.runtime.evaluation import run
from stratakv.runtime.evaluation.options import EvalOptions
from stratakv.runtime.evaluation.suites import fidelity
from stratakv.runtime.evaluation.suites.check import Check
from stratakv.runtime.evaluation.texts import MissingTextError


@pytest.fixture(autouse=True)
def _few_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of every variant in every context: what is done with the figures does not depend on how many there are."""
    monkeypatch.setattr(fidelity, "POSITIONS", 40)


class Silent:
    def start(self, total: int) -> None: ...

    def advance(self, what: str) -> None: ...


def evaluate(suite: str, folder: Path, **changes: Any) -> dict[str, Any]:
    """Of a model that is not there."""
    given: dict[str, Any] = {
        "model": str(folder / "no-model"), "device": "cpu", "dtype": "float32", "indexes": ["bounds"], "budgets": [176],
        "options": EvalOptions(512, 1), "texts": EXCERPT, "kv_dir": None, "ticker": Silent(),
    }  # fmt: skip
    return run.evaluate(suite, **{**given, **changes})


@pytest.mark.parametrize(
    ("suite", "changes", "says"),
    [
        ("speed", {}, "suite is one of exact, fidelity, needles, tasks; not 'speed'"),
        ("exact", {"indexes": ["bounds", "nearest"]}, "not 'nearest'"),
        ("exact", {"budgets": [176, 50]}, "budget is at least 112 tokens, not 50"),
        ("needles", {"options": EvalOptions(512, 1, question="prompt")}, "so none can be in its prompt"),
    ],
)
def test_what_cannot_be_run_is_refused_before_a_model_is_looked_for(
    suite: str, changes: dict[str, Any], says: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=says):
        evaluate(suite, tmp_path, **changes)


def test_so_is_a_missing_text(tmp_path: Path) -> None:
    with pytest.raises(MissingTextError, match=r"stratakv\.runtime\.evaluation\.fetch"):
        evaluate("needles", tmp_path, texts=tmp_path)


@pytest.mark.parametrize(("errors", "passed"), [((0.0, 0.1), True), ((0.0, 0.3), False), ((0.3, None), False)], ids=str)
def test_a_run_passes_if_all_its_checks_do(
    errors: tuple[float | None, ...], passed: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checks = [Check("one", error, 0.2).as_dict() for error in errors]
    asked: list[Any] = []
    monkeypatch.setattr(run.exact, "run", lambda *of: asked.append(of) or {"checks": checks})
    found = evaluate("exact", tmp_path, options=EvalOptions(512, 1, seed=7))
    assert (found["passed"], found["checks"], found["seed"], found["device"]) == (passed, checks, 7, "cpu")
    ((setting, indexes, seed, _),) = asked
    assert (setting.model, indexes, seed) == (str(tmp_path / "no-model"), ["bounds"], 7)


@pytest.mark.parametrize(
    ("rows", "passed"),
    [
        ([{}, {"misses": [], "undecided": []}], True),
        ([{"misses": [], "undecided": ["a mark"]}, {"misses": [], "undecided": []}], None),
        ([{"misses": ["a mark"], "undecided": []}, {"misses": [], "undecided": ["another"]}], False),
        ([{}, {}], None),
    ],
    ids=["met", "undecided", "missed", "yardsticks"],
)
def test_a_mark_that_is_missed_decides_and_yardsticks_are_not_judged(
    rows: list[dict[str, Any]], passed: bool | None
) -> None:
    assert run._passed({"variants": rows}) is passed


def test_the_same_seed_gives_the_same_figures(tiny_llama: Path, tmp_path: Path) -> None:
    def figures(*arguments: object) -> list[dict[str, Any]]:
        settings = ("--samples", 1, "--ctx", 512, "--budget", 176, *arguments)
        variants: list[dict[str, Any]] = evaluated("fidelity", tiny_llama, tmp_path, *settings)["variants"]
        return variants

    first = figures()
    assert figures() == first
    assert figures("--kv-dir", tmp_path / "kv") == first
    from_store = figures("--kv-dir", tmp_path / "kv")
    assert [row["kl"] for row in from_store] == pytest.approx([row["kl"] for row in first], rel=1e-3, abs=1e-9)
    assert figures("--seed", 1) != first
