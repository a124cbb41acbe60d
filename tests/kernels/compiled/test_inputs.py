"""What layers read of a token besides, in compiled loops: for all layers at once what the module makes of each."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from compiled_rows import bits, nothing_yet, work

from stratakv.kernels.compiled import record as r
from stratakv.kernels.compiled.inputs import inputs


def test_each_layers_stand_behind_its_gates() -> None:
    batch, layers, width, root, factor = 3, 2, 5, 0.3, 1.7
    torch.manual_seed(0)
    made, rows, norm = torch.randn(batch, layers, width), torch.randn(batch, layers, width), torch.randn(width)
    out = nothing_yet(layers, batch, 2, width)
    row = np.zeros(r.WIDTH, dtype=np.int64)
    row[[r.OPERATION, r.ITEMS, r.BARRIER]] = inputs.address, batch * layers, 1
    row[[r.I_BATCH, r.I_LAYERS, r.I_WIDTH]] = batch, layers, width
    row[[r.I_MADE, r.I_ROWS, r.I_OUT, r.I_NORM]] = made.data_ptr(), rows.data_ptr(), out.data_ptr(), norm.data_ptr()
    row[[r.I_EPS, r.I_ROOT, r.I_FACTOR]] = bits(0.01), bits(root), bits(factor)
    work(row)
    expected = (F.rms_norm(made * root, [width], norm, 0.01) + rows * factor) * 0.5**0.5
    torch.testing.assert_close(out[:, :, 1], expected.transpose(0, 1))
    assert out[:, :, 0].isnan().all()
