"""The names of all indexes. A new index is one file, one line here and one line in the tests' list.

Classes are imported on use, so that one index's dependencies never burden another, and names are
checked before a tensor library is loaded. A *spec* is a name, or a name with settings of that index:
`magicpig:bits=8:tables=75`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from importlib import import_module
from typing import TYPE_CHECKING, Any

from .params import IndexParams

if TYPE_CHECKING:
    from .index import Index
    from .layer import IndexedLayer

INDEXES = {
    "a2ats": "A2ATSIndex",
    "actqkv": "ActQKVIndex",
    "bounds": "BoundsIndex",
    "delta": "DeltaIndex",
    "dense": "DenseIndex",
    "leoam": "LeoAMIndex",
    "louiskv": "LouisKVIndex",
    "magicpig": "MagicPIGIndex",
    "oracle": "OracleIndex",
    "rounds": "RoundsIndex",
    "shadowkv": "ShadowKVIndex",
    "spectral": "SpectralIndex",
    "tidal": "TidalIndex",
    "window": "WindowIndex",
}
"""Each index's name, which is also its module's, and its class."""
AUTO = "spectral"
"""The index that `auto` stands for: docs/decisions/0010."""


def index_names() -> list[str]:
    """The names that a user may give, with `auto` first."""
    return ["auto", *sorted(INDEXES)]


def split_spec(spec: str) -> tuple[str, dict[str, str]]:
    """Split a spec into the index's name, with `auto` resolved, and its settings as text. Raises ValueError for an
    unknown name."""
    name, given = split_settings(spec)
    if name not in index_names():
        raise ValueError(f"index is one of {', '.join(index_names())}; not {name!r}")
    return AUTO if name == "auto" else name, given


def index_class(spec: str) -> tuple[type[Index], Any]:
    """Find an index's class and read its options. Raises ValueError for a name or setting that is unknown or out of
    range."""
    name, given = split_spec(spec)
    found: type[Index] = getattr(import_module(f".indexes.{name}", __package__), INDEXES[name])
    return found, read_options("index", spec, found.Options, given)


def make_index(spec: str, params: IndexParams, layer: IndexedLayer | None = None) -> Index:
    """Make an index for one layer. Raises ValueError as `index_class` does."""
    from .layer import IndexedLayer

    found, options = index_class(spec)
    return found(params, layer or IndexedLayer(), options)


def split_settings(spec: str) -> tuple[str, dict[str, str]]:
    """The name, and the settings as text. Settings may also be set apart by commas: `snapkv:window=32,keep=0.1`."""
    name, *settings = spec.replace(",", ":").split(":")
    pairs = (setting.partition("=") for setting in settings)
    return name, {key.strip(): value.strip() for key, _, value in pairs}


def read_options(what: str, spec: str, kind: type[Any], given: Mapping[str, str]) -> Any:
    """Fill the dataclass `kind` of int and float settings. Raises ValueError for a setting that is unknown or out of
    range; `what` is what `spec` names."""
    defaults: dict[str, Any] = {field.name: field.default for field in fields(kind)}
    unknown = sorted(set(given) - set(defaults))
    if unknown:
        known, name = ", ".join(defaults) or "none", split_settings(spec)[0]
        raise ValueError(f"{what} {name!r} has no setting {', '.join(map(repr, unknown))}; its settings: {known}")
    try:
        return kind(**{key: _number(key, text, defaults[key]) for key, text in given.items()})
    except (ValueError, OverflowError) as error:
        raise ValueError(f"{what} {spec!r}: {error}") from None


def _number(name: str, text: str, default: float) -> int | float:
    try:
        return int(text) if isinstance(default, int) else float(text)
    except ValueError:
        kind = "a whole number" if isinstance(default, int) else "a number"
        raise ValueError(f"{name} is {kind}, not {text!r}") from None
