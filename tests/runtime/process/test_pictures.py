"""A picture that cannot be drawn is refused before any work."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from stratakv.runtime.process import pictures


@pytest.mark.parametrize("name", ["a.png", "a.svg", "a.b.pdf"])
def test_what_can_be_drawn(name: str) -> None:
    pictures.check(Path(name))


@pytest.mark.parametrize("name", ["a.jpg", "a", "png", "a.PNG"])
def test_another_ending_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=r"a picture's name ends in \.png, \.svg, \.pdf; not "):
        pictures.check(Path("folder") / name)


def test_without_matplotlib_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ValueError, match=r"pip install 'stratakv\[eval\]'"):
        pictures.check(Path("a.png"))
