"""How tokens are chosen, as a session keeps it: what is not usual. Read without trust, and from later versions."""

from __future__ import annotations

import logging
from dataclasses import fields
from typing import Any

from .config import GenerationConfig
from .session_header import shown

logger = logging.getLogger(__name__)

_LEAST, _MOST = -(1 << 63), (1 << 64) - 1
_MAX_STOPS, _MAX_STOP = 64, 1 << 12


def to_notes(config: GenerationConfig) -> dict[str, Any]:
    """The fields that are not at their defaults, for JSON."""
    usual = GenerationConfig()
    said = {field.name: getattr(config, field.name) for field in fields(config)}
    changed = {name: value for name, value in said.items() if value != getattr(usual, name)}
    return {name: list(value) if isinstance(value, tuple) else value for name, value in changed.items()}


def from_notes(found: dict[str, Any]) -> GenerationConfig:
    """What of `found` this version understands, over the defaults; the log says what is left out."""
    config = GenerationConfig()
    usual = {field.name: getattr(config, field.name) for field in fields(config)}
    for name, value in found.items():
        if name not in usual or not _is_like(value, usual[name]):
            logger.warning("the session's setting %s=%s is not used: it is none of ours", shown(name), shown(value))
            continue
        try:
            config = GenerationConfig.from_kwargs(config, **{name: value})
        except (ValueError, TypeError) as error:
            logger.warning("the session's setting %s=%s is not used: %s", shown(name), shown(value), error)
    return config


def _is_like(value: Any, usual: Any) -> bool:
    """Whether `value` is of the kind that the setting's default is."""
    if isinstance(usual, bool):
        return isinstance(value, bool)
    if isinstance(usual, tuple):
        return isinstance(value, list) and len(value) <= _MAX_STOPS and all(map(_is_stop, value))
    if isinstance(usual, float):
        return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e300
    return isinstance(value, int) and not isinstance(value, bool) and _LEAST <= value <= _MOST  # `seed` has None


def _is_stop(value: Any) -> bool:
    return isinstance(value, str) and 0 < len(value) <= _MAX_STOP
