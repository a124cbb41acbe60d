"""What each layer reads of a token besides the hidden state (`runtime.model.layer_inputs`), for all layers at once.

It is left behind the numbers that a layer's gate will be, so that the gated product reads both as those of an MLP.
"""

from __future__ import annotations

import math

from numba import float32

from .native import floats, longs, real
from .operation import operation
from .record import I_BATCH, I_EPS, I_FACTOR, I_LAYERS, I_MADE, I_NORM, I_OUT, I_ROOT, I_ROWS, I_WIDTH, WIDTH


@operation
def inputs(row: int, item: int, scratch: int) -> None:
    """Those of one layer of one sequence."""
    op = longs(row, WIDTH)
    batch, layers, width = op[I_BATCH], op[I_LAYERS], op[I_WIDTH]
    b, layer = item // layers, item % layers
    made, rows = (
        floats(op[I_MADE], (batch, layers, width))[b, layer],
        floats(op[I_ROWS], (batch, layers, width))[b, layer],
    )
    out, weight = floats(op[I_OUT], (layers, batch, 2, width))[layer, b, 1], floats(op[I_NORM], width)
    root, factor, eps = float32(real(op[I_ROOT])), float32(real(op[I_FACTOR])), float32(real(op[I_EPS]))
    total = float32(0)
    for i in range(width):
        total += made[i] * made[i]
    scale = root / float32(math.sqrt(total * root * root / float32(width) + eps))
    for i in range(width):
        out[i] = (made[i] * scale * weight[i] + rows[i] * factor) * float32(math.sqrt(0.5))
