"""The settings by which tokens are chosen, as a session keeps them: those that are not usual. They are read without
trust, and from later versions."""

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
    """The settings among `found` that this version understands, over the defaults; the log says which are left out."""
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
    """True if `value` is of the same kind as the setting's default. The setting itself checks its range."""
    if isinstance(usual, tuple):
        return isinstance(value, list)
    kind = bool if isinstance(usual, bool) else int | float if isinstance(usual, float) else int  # `seed` has None
    return isinstance(value, kind) and isinstance(value, bool) == (kind is bool)
