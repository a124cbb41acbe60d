"""The points of a conversation to come back to."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from torch import Tensor

from ..api.reply import Reply
from ..engine.sequence import Snapshot


@dataclass(frozen=True, slots=True)
class Draft:
    """The point before a reply, from which a reply can be generated."""

    snapshot: Snapshot
    logits: Tensor | None
    """Logits at the end of `snapshot`; None where there is a `prompt`."""
    num_messages: int
    said: list[int]
    """Tokens that stand after `snapshot` now. The last of them may not be in the sequence yet."""
    begin: Snapshot | None = None
    """The point before the turn that asked for the reply; None if nobody remembers it: then no thinking is dropped."""
    carried: list[int] = field(default_factory=list)
    """Tokens of the turn before `begin` that were not in the sequence there."""
    prompt: np.ndarray | None = None
    """Tokens to read at `snapshot` before a reply can begin there, uint32; None: nothing."""


@dataclass(frozen=True, slots=True)
class Point:
    """The whole state of a conversation at one moment."""

    snapshot: Snapshot
    messages: list[dict[str, str]]
    last: Reply
    unfed: list[int]
    draft: Draft | None
