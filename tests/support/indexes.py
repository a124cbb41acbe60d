"""The indexes under contract: a new index adds one line here and has the whole suite."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class IndexCase:
    name: str
    reads_tokens: bool = False
    """Selects single tokens; otherwise pages."""
    keeps_budget: bool = True


INDEX_CASES = [
    IndexCase("bounds"),
    IndexCase("dense", keeps_budget=False),
    IndexCase("oracle", reads_tokens=True),
    IndexCase("window"),
]
