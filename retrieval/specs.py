"""The grammar of what users name: `NAME`, or `NAME:SETTING=VALUE:SETTING=VALUE`. Loads no tensor library."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any


def split_spec(spec: str) -> tuple[str, dict[str, str]]:
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
        known, name = ", ".join(defaults) or "none", split_spec(spec)[0]
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
