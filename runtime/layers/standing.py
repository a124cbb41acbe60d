"""What a compiled step reads and writes of one layer, as far as it stays from step to step.

A layer says it once, and goes on giving the same objects for as long as they hold: by these whoever has put the layers
of a sequence together (`engine.sequence_rows`) sees that nothing but its newest token is new.

Shapes  G KV heads, D head dim
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from torch import Tensor

from ...retrieval.scoring import Counts
from .attend_rows import KV_KINDS

NUM_ROWS = 4
"""What chooses: tables, scores, choice; and what attends, which comes last."""
_NONE = Counts(0, 0, 0)


class RunNumbers(NamedTuple):
    """A run of rows as numbers. Bytes, but for the kind."""

    address: int
    """Of the first row's k, in the first head."""
    pitch: int
    """From there to the next row's."""
    head_pitch: int
    """To the next head's."""
    v_after: int
    """To the first row's v."""
    kind: int
    """Of the numbers there, F32 or BF16."""


class Run:
    """The memory in which a layer's newest tokens lie, one behind the other: k and v `[2, G, n, D]`."""

    def __init__(self, kv: Tensor) -> None:
        self.kv = kv
        size = kv.element_size()
        self.numbers = RunNumbers(
            kv.data_ptr(), kv.stride(2) * size, kv.stride(1) * size, kv.stride(0) * size, KV_KINDS[kv.dtype]
        )


@dataclass(eq=False, slots=True)
class Standing:
    """What a layer's attention reads: rows of a step's table, and what they leave out."""

    rows: np.ndarray
    """int64 `[NUM_ROWS, WIDTH]`: all but the addresses of pages and of chosen units, how many units are chosen, and
    the run."""
    seen: int
    """The most tokens at the end of the run that are read."""
    pids: np.ndarray = field(default_factory=lambda: np.empty(0, dtype=np.int64))
    """The sealed pages that units are of, int64."""
    unit: int = 1
    """Tokens of one."""
    counts: Counts = _NONE
    """How many units are read of each head. They may become fewer from step to step, or more up to `most`."""
    most: int = 0
    is_chosen: bool = False
    """Whether units are chosen among them; otherwise all are read."""
