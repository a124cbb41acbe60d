"""The variants that are compared: an index or a placement at a budget, always between a floor, a ceiling and reading
everything."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from ...retrieval.placement_registry import PLACEMENTS, placement_spec
from ...retrieval.registry import AUTO, split_settings, split_spec
from ..api.config import KVConfig

FLOOR, CEILING, DENSE = "window", "oracle", "dense"


@dataclass(frozen=True, slots=True)
class Variant:
    """One way to read: an index at a budget (tokens per KV head and step, or a share of the context), or a placement
    that keeps so much."""

    index: str
    """The name of an index or a placement, or that with settings (`spectral:rank=8`, `snapkv:mode=hot`)."""
    budget: int | float

    @property
    def label(self) -> str:
        return self.index if self.index == DENSE else f"{self.index}@{self.budget:g}"

    @property
    def is_yardstick(self) -> bool:
        """True for floor, ceiling and dense, by which others are judged."""
        return _is_yardstick(self.index)

    @property
    def is_placement(self) -> bool:
        return _name(self.index) in PLACEMENTS

    @property
    def reads_what_is_kept(self) -> bool:
        """True for a placement beside which no index is asked."""
        return self.is_placement and placement_spec(self.index).is_visible

    def config(self, base: KVConfig) -> KVConfig:
        """`base`, read in this way: a placement alone, or with mode=hot beside the default index. Raises ValueError if
        the budget cannot hold what is always read, or for an unknown name or setting."""
        if not self.is_placement:
            return replace(base, index=self.index, budget=self.budget)
        index = DENSE if self.reads_what_is_kept else AUTO
        return replace(base, index=index, budget=self.budget, placement=f"{self.index}:keep={self.budget:g}")

    def as_dict(self) -> dict[str, Any]:
        return {"label": self.label, "index": self.index, "budget": self.budget}


def variants(indexes: list[str], budgets: list[int | float], *, least: int | None = None) -> list[Variant]:
    """List dense once, first; then at every budget the floor, the indexes and the ceiling.

    `least`, if given, is a budget at which only the floor is added: sinks and the local window.
    """
    between = [name for name in dict.fromkeys(indexes) if not _is_yardstick(name)]
    found = [Variant(DENSE, max(budgets))]
    if least is not None:
        found.append(Variant(FLOOR, least))
    for budget in sorted(set(budgets)):
        found += [Variant(name, budget) for name in (FLOOR, *between, CEILING)]
    return found


def _name(index: str) -> str:
    """The name in a spec, as it is written."""
    return split_settings(index)[0]


def _is_yardstick(index: str) -> bool:
    return _name(index) not in PLACEMENTS and split_spec(index)[0] in (FLOOR, CEILING, DENSE)
