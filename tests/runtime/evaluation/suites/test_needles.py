"""The needles suite: every mode asks for what was hidden or told, and a digit is right or wrong."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from eval_runs import evaluate, rows

from stratakv.runtime.evaluation.suites import needles
from stratakv.runtime.evaluation.suites.needles import MODES, Answer
from stratakv.runtime.evaluation.variants import Variant


@pytest.fixture(autouse=True)
def _few_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of every variant in every context: what is done with the figures does not depend on how many there are."""
    monkeypatch.setattr(needles, "NEEDLES", 2)


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


def answers(contexts: int, *lost: tuple[str, int]) -> list[Answer]:
    """Two needles of each context, asked for in every mode. Of those that are `lost`, by mode and turn, one digit of
    seven is wrong."""
    return [
        Answer(mode, context, turn, 0.4 * turn, np.arange(7) < (6 if (mode, turn) in lost else 7))
        for context in range(contexts)
        for mode in MODES
        for turn in (range(2) if mode in ("shared", "turns") else [0])
    ]


def test_what_is_lost_is_told_by_mode_turn_and_depth() -> None:
    """Digits and whole numbers are counted apart; depths are those of questions that stand alone."""
    row = needles._row(Variant("bounds", 128), answers(5, ("turns", 1), ("shared", 0)), answers(5))
    digits = {mode: of["digits"]["difference"] for mode, of in row["modes"].items()}
    whole = {mode: of["whole"]["difference"] for mode, of in row["modes"].items()}
    assert digits == pytest.approx({"shared": -1 / 14, "turns": -1 / 14, "told_by_user": 0, "told_by_model": 0})
    assert whole == pytest.approx({"shared": -0.5, "turns": -0.5, "told_by_user": 0, "told_by_model": 0})
    assert {turn: of["difference"] for turn, of in row["turns"].items()} == pytest.approx({"0": 0, "1": -1 / 7})
    assert {depth: of["difference"] for depth, of in row["depths"].items()} == pytest.approx({"0.0": -1 / 7, "0.4": 0})
    assert (row["worst_turn"], row["worst_depth"]) == pytest.approx((-1 / 7, -1 / 7))


def test_only_an_index_is_judged() -> None:
    """Five contexts show a loss; to show that 1 point is not lost takes 300."""
    lost = answers(5, ("turns", 1))
    found = needles._row(Variant("bounds", 128), lost, answers(5))
    assert found["misses"] == ["turns at most 1 point below dense", "turn 1 at most 5 points below"]
    assert "shared at most 1 point below dense" in found["undecided"]
    assert len(found["misses"]) + len(found["undecided"]) == len(MODES) + 4
    for yardstick in ("window", "oracle", "dense"):
        assert "misses" not in needles._row(Variant(yardstick, 128), lost, answers(5))
