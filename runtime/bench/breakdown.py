"""What the operations of a decode step took, in what share of the memory's speed.

The parts of a step are the rows of its table by their mark, what comes before the first table and between two, and what
is left: they add up to the step. Bytes are those that memory must give: of weights, of what an index keeps, of keys and
values. What operations leave for each other is small, stays in caches, and is not counted.

Shapes  M marks
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from ...kernels.compiled import record as r
from ..api.figures import ratio

OPERATIONS = {
    r.M_QKV: "q k v", r.M_HEADS: "rotate and append", r.M_TABLES: "score tables", r.M_SCORES: "scores",
    r.M_CHOICE: "choice", r.M_ATTENTION: "attention", r.M_OUT: "output", r.M_GATE_UP: "gate and up", r.M_DOWN: "down",
    r.M_HEAD: "head", r.M_SHARPEN: "highest logits", r.NO_MARK: "unmarked",
}  # fmt: skip
"""By mark, in the order of a step. A product includes what makes its input: residuals, norms, the activation, the merge
of attention's parts."""
PREPARE, BETWEEN, WAITS, OTHER = "prepare", "between", "waits", "other"
"""Before the first table: embedding, positions, filling in rows. Between two: PyTorch's operations, and fetching. Waits
for pages. What is left: choosing the token, naming pages, calls."""
_PRODUCTS = {r.M_QKV, r.M_OUT, r.M_GATE_UP, r.M_DOWN, r.M_HEAD}


@dataclass(frozen=True, slots=True)
class StepParts:
    """One step."""

    step_s: float
    operations_s: np.ndarray
    """`[M]`, as is `num_bytes`."""
    num_bytes: np.ndarray
    prepare_s: float = 0.0
    """From the step's beginning to that of its first table."""
    between_s: float = 0.0
    """From the end of a table to the beginning of the next, waits included."""
    waits_s: float = 0.0


def read_bytes(row: np.ndarray) -> int:
    """Bytes that the operation of a row reads from memory."""
    op = [int(field) for field in row]
    if not op[r.ITEMS]:
        return 0
    mark = op[r.MARK]
    if mark in _PRODUCTS:
        numbers, size = r.BLOCKS[op[r.P_KIND]]
        scales = 4 * op[r.P_ROWS] if op[r.P_KIND] == r.I8 else 0
        each = op[r.P_ROWS] * op[r.P_COLUMNS] // numbers * size + scales + (4 * op[r.P_ROWS] if op[r.P_BIAS] else 0)
        if op[r.P_CHOSEN]:  # each sequence's experts; P_BATCH counts them all where what they make is added up
            each *= op[r.P_BATCH] * (1 if op[r.P_INPUT] == r.GATED else op[r.P_CHOSEN])
        return each
    if mark == r.M_TABLES:  # an item is one of M parts of a head; its basis and its codebook
        return op[r.ITEMS] * op[r.S_CODE_DIM] * 4 * (op[r.S_DIM] + 256)
    if mark == r.M_SCORES:
        units = op[r.S_UNITS]
        groups = op[r.ITEMS] // -(-units // op[r.S_SPAN])
        if op[r.S_CODE_PARTS]:
            anchors = -(-units // op[r.S_SEGMENT])
            return groups * (units * op[r.S_CODE_PARTS] + anchors * op[r.S_DIM] * 2)
        return groups * units * 2 * op[r.S_DIM] * _size(op[r.S_KIND])
    if mark == r.M_ATTENTION:
        chosen = op[r.A_COUNT] * op[r.A_UNIT] * _size(op[r.A_KV_KIND])
        behind = op[r.A_TAIL_LEN] * _size(op[r.A_TAIL_KIND])
        return op[r.A_GROUPS] * 2 * op[r.A_DIM] * (chosen + behind)
    return 0


def _size(kind: int) -> int:
    return r.BLOCKS[kind][1]


def middle(steps: list[StepParts]) -> list[StepParts]:
    """Half of the steps: neither the fastest quarter nor the slowest."""
    cut = len(steps) // 4
    return sorted(steps, key=lambda step: step.step_s)[cut : len(steps) - cut]


def summary(steps: list[StepParts], memory: float) -> dict[str, Any]:
    """The mean over the middle half of the steps. Parts that are in none of them are left out.

    Args:
        memory: bytes per second that it is read with.
    """
    found = middle(steps)
    operations = np.mean([step.operations_s for step in found], 0)
    num_bytes = np.mean([step.num_bytes for step in found], 0)
    step_s, prepare, between = np.mean([[s.step_s, s.prepare_s, s.between_s] for s in found], 0)
    waits = np.mean([min(s.waits_s, s.between_s) for s in found])
    left = step_s - prepare - operations.sum() - between
    rest = {PREPARE: prepare, BETWEEN: between - waits, WAITS: waits, OTHER: left}
    parts = [
        _part(name, operations[mark], num_bytes[mark], memory) for mark, name in OPERATIONS.items() if operations[mark]
    ]
    parts += [_part(name, seconds, 0, memory) for name, seconds in rest.items() if seconds or name == OTHER]
    return {
        "form": "compiled", "averaged_steps": len(found), "parts": parts,
        "total": _part(None, step_s, num_bytes.sum(), memory),
    }  # fmt: skip


def total_only(step_s: list[float]) -> dict[str, Any]:
    """The same where PyTorch computes steps, one operation after the other, and nobody knows what each took."""
    nothing = np.zeros(0)
    found = middle([StepParts(seconds, nothing, nothing) for seconds in step_s])
    total = _part(None, float(np.mean([step.step_s for step in found])), 0, 1)
    return {"form": "pytorch", "averaged_steps": len(found), "parts": [], "total": total}


def _part(name: str | None, seconds: float, num_bytes: float, memory: float) -> dict[str, Any]:
    share = ratio(num_bytes / memory, seconds) if num_bytes else None
    figures = {
        "took_ms": 1000 * float(seconds), "read_bytes": float(num_bytes) or None,
        "memory_share": None if share is None else float(share),
    }  # fmt: skip
    return figures if name is None else {"operation": name, **figures}
