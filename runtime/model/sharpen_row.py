"""The highest logits of a compiled step once more in fp32, as `Head` has them, as a table of one row."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from ...kernels.compiled import record as r
from ...kernels.compiled.sharpen import sharpen, sharpen_bytes
from .head import CANDIDATES, Head
from .lean_layer import Norm
from .products import strip_of


class SharpenRow:
    """Replaces the highest of `logits` `[B, V]`, which the head's product has made of the norm of `hidden` `[B, K]`;
    both stay where they are."""

    def __init__(self, head: Head, logits: Tensor, hidden: Tensor) -> None:
        norm, linear = Norm(head.norm), head.linear
        strip = strip_of(linear.weight.detach())
        weights = [norm.weight] if linear.bias is None else [norm.weight, linear.bias]
        wide = [numbers.detach().float().contiguous() for numbers in weights]
        count = min(CANDIDATES, strip.rows)
        self._kept = logits, hidden, strip, wide
        self.table = np.zeros((1, r.WIDTH), dtype=np.int64)
        row = self.table[0]
        row[[r.OPERATION, r.ITEMS, r.BARRIER]] = sharpen.address, len(logits), 1
        row[r.MARK] = r.M_SHARPEN
        row[r.MEMORY] = sharpen_bytes(strip.columns, count)
        row[[r.T_BATCH, r.T_ROWS, r.T_COLUMNS, r.T_COUNT]] = len(logits), strip.rows, strip.columns, count
        row[[r.T_LOGITS, r.T_HIDDEN, r.T_NORM]] = logits.data_ptr(), hidden.data_ptr(), wide[0].data_ptr()
        row[r.T_EPS] = r.bits(norm.eps)
        row[[r.T_WEIGHT, r.T_KIND]] = strip.address, strip.kind
        row[r.T_CENTRED] = norm.is_centred
        row[r.T_BIAS] = 0 if linear.bias is None else wide[1].data_ptr()
