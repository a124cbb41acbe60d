"""The parameters that every index shares. Imports no tensor library: settings are checked before one loads."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class IndexParams:
    """The settings that every index needs to know."""

    page_size: int = 16
    """Tokens per page. A selection of pages counts in these."""
    sink: int = 16
    """Number of first tokens that are always read (StreamingLLM, arXiv 2309.17453)."""
    local: int = 64
    """Number of most recent sealed tokens that are always read."""

    def __post_init__(self) -> None:
        if self.page_size < 1:
            raise ValueError(f"page_size is at least 1 token, not {self.page_size}")
        if self.sink < 0 or self.local < 0:
            raise ValueError(f"sink and local are at least 0 tokens, not {self.sink} and {self.local}")

    def units(self, tokens: int, unit: int) -> int:
        """The number of units of `unit` tokens that cover `tokens`."""
        return -(-tokens // unit)
