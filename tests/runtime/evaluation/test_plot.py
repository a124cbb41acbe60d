"""Pictures show what a result says, and lines and bars of different variants differ."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from drawings import hex_colour, kept
from eval_results import MANY, exact, many_indexes, needles, tasks

from stratakv.runtime.evaluation import plot


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    return kept(plot, monkeypatch)


def test_many_indexes_make_a_legible_picture(tmp_path: Path) -> None:
    """Eight lines that differ."""
    result = many_indexes()
    plot.draw(result, tmp_path / "picture.svg")
    drawn = (tmp_path / "picture.svg").read_text()
    colours = {plot.colour(result, name) for name in ("window", *MANY, "oracle")}
    assert len(colours) == 8
    assert len({plot.marker(result, name) for name in MANY}) == 6
    assert all(drawn.count(colour) >= 4 for colour in colours)


def test_a_line_goes_from_budget_to_budget(figures: list[Any], tmp_path: Path) -> None:
    """The legend has the lines from the top at their right ends, and ticks that would touch are left out."""
    result = many_indexes()
    result["variants"] = [row for row in result["variants"] if row["index"] in ("dense", "window", "oracle")][::-1]
    result["variants"][1]["tokens_read"] = 1.1 * result["variants"][3]["tokens_read"]
    plot.draw(result, tmp_path / "picture.svg")
    (axes,) = figures[0].axes
    lines = {line.get_label(): line for line in axes.lines}
    assert list(lines) == ["window", "oracle"], "dense is what they are measured from"
    for name, line in lines.items():
        rows = sorted((row["tokens_read"], row["kl"]) for row in result["variants"] if row["index"] == name)
        assert [*zip(*line.get_data(), strict=True)] == rows
    assert [label.get_text() for label in axes.get_xticklabels()] == ["82\n2.0%", "205\n5.0%", "410\n10.0%"]
    assert "bars: 95 %" in axes.get_ylabel()


def test_a_check_without_an_error_has_a_full_bar_and_one_that_counts_no_bound(
    figures: list[Any], tmp_path: Path
) -> None:
    plot.draw(exact(), tmp_path / "picture.svg")
    (axes,) = figures[0].axes
    assert [label.get_text() for label in axes.get_yticklabels()] == ["counted", "none", "far", "near"]
    assert [bar.get_width() for bar in axes.patches] == [0, 1, 1e-3, 1e-6]
    counted, none, far, near = map(hex_colour, axes.patches)
    assert counted == near != far == none
    assert [line.get_xdata()[0] for line in axes.lines] == [1e-4] * 3


def test_needles_are_shown_by_mode_and_by_turn(figures: list[Any], tmp_path: Path) -> None:
    plot.draw(needles(), tmp_path / "picture.svg")
    modes, turns = figures[0].axes
    assert [bar.get_height() for bar in modes.patches] == [100, 100, 87.5, 50, 100, 75]
    assert [list(line.get_xdata()) for line in turns.lines] == [[1, 2]] * 3
    assert [list(line.get_ydata()) for line in turns.lines] == [[100, 100], [87.5, 50], [100, 75]]
    dense, smaller, larger = (modes.patches[at] for at in (0, 2, 4))
    assert hex_colour(smaller) == hex_colour(larger) != hex_colour(dense)
    assert smaller.get_alpha() < larger.get_alpha() == dense.get_alpha() == 1, "smaller budgets are paler"
    assert dense.get_x() < smaller.get_x() < larger.get_x()


def test_tasks_have_bars_for_tokens_and_marks_for_replies(figures: list[Any], tmp_path: Path) -> None:
    plot.draw(tasks(), tmp_path / "picture.svg")
    (axes,) = figures[0].axes
    assert figures[0].get_suptitle() == "tasks: m, 4 x 4096 tokens  (* needs much of the context)"
    assert [bar.get_height() for bar in axes.patches] == pytest.approx([90, 20, 80, 10])
    assert [list(line.get_ydata()) for line in axes.lines] == [[100, 0], [75, 0]]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["qa_1", "cwe *"]


def test_a_title_names_who_is_undecided(figures: list[Any], tmp_path: Path) -> None:
    result = needles()
    for row in result["variants"][1:]:
        row["undecided"] = ["a mark"]
    plot.draw(result, tmp_path / "picture.svg")
    assert figures[0].get_suptitle().splitlines() == [
        "needles: m, 4 x 4096 tokens", "marks undecided, the samples are too few: bounds@256, bounds@512",
    ]  # fmt: skip
