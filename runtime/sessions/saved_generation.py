"""How tokens are chosen, as a session keeps it: what is not usual. Read without trust, and from later versions."""

from __future__ import annotations

import logging
from dataclasses import fields
from typing import Any

from ..api.config import GenerationConfig
from ..untrusted.numbers import shown

logger = logging.getLogger(__name__)


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
    """Whether `value` is of the kind that the setting's default is. How large it may be, the setting itself knows."""
    if isinstance(usual, tuple):
        return isinstance(value, list)
    kind = bool if isinstance(usual, bool) else int | float if isinstance(usual, float) else int  # `seed` has None
    return isinstance(value, kind) and isinstance(value, bool) == (kind is bool)
