"""What is kept of compiled scores, for tests; operations run item by item in memory that shows who writes beside it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from compiled_rows import Buffer
from torch import Tensor

from stratakv.kernels.compiled import record
from stratakv.kernels.compiled.choice import choice_bytes, choose
from stratakv.kernels.compiled.operation import Operation
from stratakv.kernels.compiled.record import WIDTH


def run(operation: Operation, items: Iterable[int], scratch_bytes: int, **fields: Any) -> None:
    """Run items of an operation, each in memory of a thread that is new."""
    op = np.zeros(WIDTH, np.int64)
    for name, value in fields.items():
        if isinstance(value, float):
            value = np.float64(value).view(np.int64)
        op[getattr(record, name)] = value.data_ptr() if isinstance(value, Tensor) else getattr(value, "address", value)
    for item in items:
        scratch = Buffer(scratch_bytes, np.uint8)
        operation(op.ctypes.data, item, scratch.address)
        scratch.check()


class Scored:
    """What is kept of the scores of `[G, R, units]`, in rows with room for more."""

    def __init__(self, groups: int, repeats: int, units: int, span: int) -> None:
        self.groups, self.repeats, self.units, self.span, self.room = groups, repeats, units, span, units + 3
        self.parts = -(-units // span)
        self.powers, self.tops = Buffer(groups * repeats * self.room), Buffer(groups * repeats * self.parts * 2)

    @property
    def fields(self) -> dict[str, Any]:
        return {"S_SCORES": self.powers, "S_ROOM": self.room, "S_TOPS": self.tops,
                "S_REPEATS": self.repeats, "S_UNITS": self.units, "S_SPAN": self.span}  # fmt: skip

    def scores(self) -> Tensor:
        """The scores again, fp64."""
        rows = self.powers.data.reshape(self.groups, self.repeats, self.room)
        assert np.isnan(rows[..., self.units :]).all(), "written behind a row"
        tops = self.tops.data.reshape(self.groups, self.repeats, self.parts, 2).astype(np.float64)
        powers = np.log2(rows[..., : self.units].astype(np.float64))
        for part in range(self.parts):
            of_part = np.s_[..., part * self.span : (part + 1) * self.span]
            np.testing.assert_allclose(tops[..., part, 1], (2 ** powers[of_part]).sum(-1), rtol=1e-5)
            powers[of_part] += tops[..., part, :1]
        return torch.from_numpy(powers) * np.log(2)

    def choose(self, count: int, sink: int, local: int) -> Tensor:
        self.powers.check(), self.tops.check()
        ids = Buffer(self.groups * count, np.int32)
        run(choose, reversed(range(self.groups)), choice_bytes(self.units, self.parts), C_REPEATS=self.repeats,
            C_UNITS=self.units, C_SPAN=self.span, C_SCORES=self.powers, C_ROOM=self.room, C_TOPS=self.tops,
            C_COUNT=count, C_SINK=sink, C_LOCAL=local, C_IDS=ids)  # fmt: skip
        ids.check()
        return torch.from_numpy(ids.data.reshape(self.groups, count).astype(np.int64))
