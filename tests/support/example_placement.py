"""The placement that docs/METHODS.md shows, taken out of the page as a reader would."""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path

import pytest
from places import ROOT

from stratakv.retrieval import placements
from stratakv.retrieval.placement_registry import PLACEMENTS

PAGE = ROOT / "docs" / "METHODS.md"
EXAMPLE = "peak"


def code() -> str:
    """What stands in the page."""
    found = re.search(r"```python\n(.*?)```", PAGE.read_text().partition("## Adding a method")[2], re.DOTALL)
    assert found is not None, "docs/METHODS.md shows no placement under 'Adding a method'"
    return found[1]


def register(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """Make `EXAMPLE` a placement like any other until the test ends."""
    path = folder / f"{EXAMPLE}.py"
    path.write_text(code())
    name = f"{placements.__name__}.{EXAMPLE}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, name, module)
    spec.loader.exec_module(module)
    monkeypatch.setitem(PLACEMENTS, EXAMPLE, "PeakPlacement")
