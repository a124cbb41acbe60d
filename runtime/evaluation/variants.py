"""The variants that are compared: an index at a budget, always between a floor, a ceiling and reading everything."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from ...retrieval import split_spec
from ..api.config import KVConfig

FLOOR, CEILING, DENSE = "window", "oracle", "dense"


@dataclass(frozen=True, slots=True)
class Variant:
    """One way to read: an index at a budget (tokens per KV head and step, or a share of the context)."""

    index: str
    """The index's name, or its name with settings (`spectral:rank=8`)."""
    budget: int | float

    @property
    def label(self) -> str:
        return self.index if self.index == DENSE else f"{self.index}@{self.budget:g}"

    @property
    def is_yardstick(self) -> bool:
        """True for floor, ceiling and dense, by which others are judged."""
        return split_spec(self.index)[0] in (FLOOR, CEILING, DENSE)

    def config(self, base: KVConfig) -> KVConfig:
        """`base`, read in this way. Raises ValueError if the budget cannot hold what is always read."""
        return replace(base, index=self.index, budget=self.budget)

    def as_dict(self) -> dict[str, Any]:
        return {"label": self.label, "index": self.index, "budget": self.budget}


def variants(indexes: list[str], budgets: list[int | float], *, least: int | None = None) -> list[Variant]:
    """List dense once, first; then at every budget the floor, the indexes and the ceiling.

    `least`, if given, is a budget at which only the floor is added: sinks and the local window.
    """
    between = [name for name in dict.fromkeys(indexes) if split_spec(name)[0] not in (FLOOR, CEILING, DENSE)]
    found = [Variant(DENSE, max(budgets))]
    if least is not None:
        found.append(Variant(FLOOR, least))
    for budget in sorted(set(budgets)):
        found += [Variant(name, budget) for name in (FLOOR, *between, CEILING)]
    return found
