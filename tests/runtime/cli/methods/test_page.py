"""What is made in the page, and what stays."""

from __future__ import annotations

from pathlib import Path

import pytest

from stratakv.runtime.cli.methods import page
from stratakv.runtime.cli.methods.method import KINDS

HAND = """# Mine

<!-- indexes -->
made before
<!-- end -->
words
<!-- placements -->
<!-- end -->
<!-- codecs -->
<!-- end -->
"""


def test_what_is_between_the_marks_is_made_and_the_rest_stays(tmp_path: Path) -> None:
    path = tmp_path / "page.md"
    path.write_text(HAND)
    page.main(path)
    made = path.read_text()
    assert "made before" not in made
    assert made.startswith("# Mine\n\n<!-- indexes -->\n")
    assert "<!-- end -->\nwords\n<!-- placements -->\n" in made
    assert "](https://arxiv.org/abs/2404.14469) |\n" in made
    assert "| [`raw`](#raw) | disks faster than a core decodes: every bit back | 512 |  |\n" in made
    assert "- `pool=5`: Neighbouring tokens that share their votes, an odd number.\n" in made
    for kind in KINDS:
        assert all(f"\n### {name}\n" in made for name in kind.names)
    assert page.with_methods(made) == made


def test_a_page_without_a_place_is_refused() -> None:
    with pytest.raises(ValueError, match="the page has no place for codecs"):
        page.with_methods(HAND.partition("<!-- codecs -->")[0])


def test_marks_of_markdown_are_not_taken_for_any() -> None:
    assert page._text("G*D < n, `a*b`") == r"G\*D &lt; n, `a*b`"
