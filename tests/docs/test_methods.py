"""docs/METHODS.md says what the methods' files say, and shows a placement that works.

The whole contract of that placement: tests/whole/test_placement.py.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from example_placement import EXAMPLE, PAGE, code, register
from placed_text import attention, placement, plain_text, queries, seen

from stratakv.retrieval.placement import Rows
from stratakv.runtime.cli.methods.method import KINDS, Kind, method
from stratakv.runtime.cli.methods.page import with_methods

FORM = ("Idea", "For", "State", "Cost")
HOW = "make methods   (or: python -m stratakv.runtime.cli.methods.page docs/METHODS.md)"


@pytest.mark.parametrize(("kind", "name"), [(kind, name) for kind in KINDS for name in kind.names])
def test_a_methods_file_says_what_is_asked_of_all(kind: Kind, name: str) -> None:
    one = method(kind, name)
    lacking = [word for word in FORM if not one.sections.get(word)]
    assert lacking == [], (
        f"{one.path}: the class's docstring says nothing of it; retrieval/placements/h2o.py is an example"
    )
    assert one.summary.endswith("."), f"{one.path}: its docstring begins with one sentence"
    assert len(one.serves) <= 100, f"{one.path}: `For` is one line of a table"
    assert [setting.name for setting in one.settings if not setting.says] == [], f"{one.path}: a docstring each"


def test_the_page_is_made_of_what_they_say() -> None:
    page = PAGE.read_text()
    assert with_methods(page) == page, f"docs/METHODS.md is not what the methods' files say. Make it anew:  {HOW}"


def test_the_example_scores_tokens_by_their_largest_weight(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    register(monkeypatch, tmp_path)
    one, text = placement(EXAMPLE), plain_text(50)
    rows = Rows(queries(one.rows), 50 - one.rows, text)
    scores = one.scores(seen(one, text, rows), text)
    torch.testing.assert_close(scores, attention(rows).amax((1, 2)))
    assert one.keep({"most": scores}, text, 12).sum(1).tolist() == [12, 12]


def test_the_example_is_short_and_in_the_form_of_all() -> None:
    assert len(code().splitlines()) <= 36
    assert all(f"{word} " in code() for word in FORM)
