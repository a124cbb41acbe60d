"""Tables that people read: every row of a result under its columns, and then what it passed or missed."""

from __future__ import annotations

import io
import re
from typing import Any

import pytest
from eval_results import exact, many_indexes, needles, tasks
from rich.console import Console

from stratakv.runtime.evaluation import report


def printed(result: dict[str, Any]) -> str:
    file = io.StringIO()
    report.show(result, Console(file=file))
    return file.getvalue()


def cells(result: dict[str, Any]) -> dict[str, list[str]]:
    """The rows of a table by their first column."""
    found = [re.split("[│┃]", line)[1:-1] for line in printed(result).splitlines() if line[0] in "│┃"]
    return {first.strip(): [cell.strip() for cell in rest] for first, *rest in found}


def test_labels_with_settings_are_not_cut_off(capsys: pytest.CaptureFixture[str]) -> None:
    result = many_indexes()
    report.show(result)
    table = capsys.readouterr().out
    assert all(row["label"] in table for row in result["variants"])
    assert all(cell in table for cell in ("+25.0", " 8 ", " 2.5 "))


def test_a_context_alone_has_no_interval_and_a_yardstick_no_yardstick() -> None:
    result = many_indexes()
    result["variants"] = result["variants"][:2]
    result["variants"][1]["kl_interval"] = None
    dense, window = cells(result)["dense"], cells(result)["window@0.02"]
    assert dense[4:8] == ["0.0000", "-", "0.000-0.000", "0.500"]
    assert window[4:8] == ["1.0000", "1.0", "-", "0.500"]


def test_checks_say_how_far_they_are_off_and_why_they_failed() -> None:
    found = cells(exact())
    assert found["near"] == ["1e-06", "0.0001", "ok"]
    assert found["far"] == ["0.001", "0.0001", "FAILED in [layer]"]
    assert found["none"] == ["-", "0.0001", "FAILED no number"]
    assert printed(exact()).splitlines()[-1] == "2 of 4 checks failed"
    passed = {**exact(), "checks": exact()["checks"][:1]}
    assert printed(passed).splitlines()[-1] == "all checks passed"


def test_digits_that_only_one_of_both_had_right_are_counted() -> None:
    found = cells(needles())
    assert found["digits right, %"] == ["tokens read", "shared", "turns", "worst turn", "worst depth"]
    assert found["dense@512"] == ["512", "100.0", "100.0", "-25", "+0"]
    assert found["bounds@256"] == ["256", "87.5", "50.0 (-7 +0)", "-25", "+0"]


def test_tasks_are_marked_and_what_is_kept_of_them_is_told() -> None:
    found = cells(tasks())
    assert found["qa_1"] == ["100 / 90", "75 / 80"]
    assert found["cwe * (not gated)"] == ["0 / 20", "0 / 10"]
    assert found["gated tasks"] == ["75.0 (-2 +1)", "-"]
    assert found["kept of dense, %"] == ["100.0 / 100.0", "75.0 / -"]
    assert found["worst gated task"] == ["qa_1", "-"]
    assert found["empty replies"] == ["2", "2"]


def test_a_title_says_what_was_read_and_how() -> None:
    result = {**tasks(), "exempt_windows": [512, 512]}
    titles = [" ".join(printed(of).partition("┏")[0].split()) for of in (needles(), result)]
    assert titles == [
        "needles: m float32, 4 x 4096 tokens, read sparsely",
        "tasks: m float32, 4 x 4096 tokens, read exactly up to the reply, 2 of 5 layers exempt",
    ]


@pytest.mark.parametrize(
    ("misses", "undecided", "says"),
    [
        ([], [], ["bounds@256 meets all marks"]),
        (["a", "b [c]"], [], ["bounds@256 misses: a; b [c]"]),
        (["a"], ["b"], ["bounds@256 misses: a", "bounds@256: 1 of its marks undecided, the samples are too few"]),
    ],
    ids=["met", "missed", "both"],
)
def test_verdicts_stand_behind_the_table(misses: list[str], undecided: list[str], says: list[str]) -> None:
    result = needles()
    result["variants"][1] |= {"misses": misses, "undecided": undecided}
    lines = printed(result).splitlines()
    assert lines[-len(says) :] == says
    assert lines[-len(says) - 1][0] in "└┗"
