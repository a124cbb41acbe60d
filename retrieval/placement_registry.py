"""The names of all placements. A new placement is one file, one line here and one line in the tests' list.

A spec is a name with settings: those of that placement, and two that all have.

    keep=0.1      the share of the text's tokens to keep (up to 1: all), or their number; per KV head, mean over layers
    mode=visible  `visible` or `hot` (see `placement`)
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any

from .params import IndexParams
from .registry import read_options, split_settings

if TYPE_CHECKING:
    from .placement import Facts, Placement

PLACEMENTS = {
    "cake": "CakePlacement",
    "dynamickv": "DynamicKVPlacement",
    "fastgen": "FastGenPlacement",
    "h2o": "H2OPlacement",
    "keyformer": "KeyformerPlacement",
    "kvcrush": "KVCrushPlacement",
    "l2norm": "L2NormPlacement",
    "lagkv": "LagKVPlacement",
    "pyramidkv": "PyramidKVPlacement",
    "razor": "RazorPlacement",
    "scissorhands": "ScissorhandsPlacement",
    "scope": "ScopePlacement",
    "snapkv": "SnapKVPlacement",
    "squeeze": "SqueezePlacement",
    "treekv": "TreeKVPlacement",
    "vatp": "VATPPlacement",
}
"""Each placement's name, which is also its module's, and its class."""
MODES = ("visible", "hot")
KEEP = 0.1


@dataclass(frozen=True, slots=True)
class PlacementSpec:
    """What a user's spec says, but for the settings that only the placement itself knows."""

    name: str
    keep: float
    """Up to 1 a share of the text, otherwise tokens."""
    mode: str
    settings: dict[str, str]
    spec: str

    @property
    def is_visible(self) -> bool:
        return self.mode == "visible"

    @property
    def identity(self) -> str:
        """What was kept can be gone on with only under the same identity."""
        settings = "".join(f":{name}={value}" for name, value in sorted(self.settings.items()))
        return f"{self.name}{settings}:keep={self.keep:g}:mode={self.mode}"

    @property
    def is_share(self) -> bool:
        return self.keep <= 1

    def tokens(self, context: int) -> int:
        """The number of tokens to keep of a text of `context` tokens."""
        return math.ceil(self.keep * context) if self.is_share else int(self.keep)

    def load(self) -> tuple[type[Placement], Any]:
        """The class, and its options. Raises ValueError for a setting that is unknown or out of range."""
        module = import_module(f".placements.{self.name}", __package__)
        found: type[Placement] = getattr(module, PLACEMENTS[self.name])
        return found, read_options("placement", self.spec, found.Options, self.settings)

    def make(self, params: IndexParams, layer: int, facts: Facts | None = None) -> Placement:
        """Make a placement for one layer. Raises ValueError as `load` does."""
        found, options = self.load()
        return found(params, layer, options, facts)


def placement_spec(spec: str) -> PlacementSpec:
    """Read a spec. Raises ValueError for an unknown name, or a value of `keep` or `mode` out of range."""
    name, settings = split_settings(spec)
    if name not in PLACEMENTS:
        raise ValueError(f"placement is one of {', '.join(sorted(PLACEMENTS))}; not {name!r}")
    mode, given = settings.pop("mode", MODES[0]), settings.pop("keep", str(KEEP))
    if mode not in MODES:
        raise ValueError(f"placement {spec!r}: mode is {' or '.join(MODES)}, not {mode!r}")
    try:
        keep = float(given)
    except ValueError:
        raise ValueError(f"placement {spec!r}: keep is a number, not {given!r}") from None
    if not (math.isfinite(keep) and keep > 0) or (keep > 1 and not keep.is_integer()):
        raise ValueError(f"placement {spec!r}: keep is a share from 0 to 1 or a whole number of tokens, not {given}")
    return PlacementSpec(name, keep, mode, settings, spec)
