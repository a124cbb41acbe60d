"""The form of a recurrent layer for compiled steps: its products, and the row between them that advances its state.

The layer's module serves PyTorch's steps: what it saves there is little, beside the state that is read and written.

Shapes  B sequences, N value heads
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from ...kernels.compiled import record as r
from ..untrusted.family import Form
from .delta_net import DeltaNet
from .expert_weights import Make
from .lean_layer import LeanLayer
from .short_conv import ShortConv

_CHUNK = 256
"""Channels of an item."""


class LeanRecurrent(LeanLayer):
    """`mixer` in place of attention: `qkv` makes what it takes, `out` takes what it makes."""

    has_halves: ClassVar[bool] = False

    def _take(self, layer: Any, form: Form, product: Make) -> None:
        mixer: DeltaNet | ShortConv = layer.mixer
        self.mixer, self.width = mixer, mixer.out_proj.weight.shape[1]
        self.qkv, self.out = product(mixer.in_projections), product([mixer.out_proj])

    def mix(
        self, row: np.ndarray, batch: int, given: Tensor, out: Tensor, states: np.ndarray, keep: Callable[[Tensor], int]
    ) -> None:  # fmt: skip
        """Fill the row that makes `out` of `given` `[B, ..]`.

        Args:
            states: int64 `[B, 2 S]`: where each of S tensors of a sequence's state lies before, and behind it.
            keep: keeps numbers, and says where.
        """
        row[[r.BARRIER, r.MARK]] = 1, r.M_ATTENTION
        fill = _delta if isinstance(self.mixer, DeltaNet) else _convolve
        fill(row, self.mixer, batch, given, out, states, keep)


def _delta(
    row: np.ndarray, net: Any, batch: int, given: Tensor, out: Tensor, states: np.ndarray,
    keep: Callable[[Tensor], int],
) -> None:  # fmt: skip
    from ...kernels.compiled.mixers import delta, delta_bytes

    row[[r.OPERATION, r.ITEMS, r.MEMORY]] = delta.address, batch * net.heads, delta_bytes(net.key_dim, net.dim)
    row[[r.D_BATCH, r.D_HEADS, r.D_KEY, r.D_VALUE]] = batch, net.heads, net.key_dim, net.dim
    row[[r.D_CHANNELS, r.D_TAPS]] = net.conv1d.weight.shape[0], net.conv1d.weight.shape[2]
    row[[r.D_IN, r.D_STRIDE, r.D_OUT, r.D_STATES]] = (
        given.data_ptr(), given.shape[1], out.data_ptr(), states.ctypes.data
    )  # fmt: skip
    row[[r.D_WEIGHTS, r.D_NORM]] = keep(net.conv1d.weight[:, 0].float()), keep(net.norm.weight.float())
    row[[r.D_RATES, r.D_STEPS]] = keep(-net.A_log.float().exp()), keep(net.dt_bias.float())
    row[[r.D_EPS, r.D_SCALE]] = r.bits(net.norm.eps), r.bits(net.scale)
    row[r.D_PLACES] = keep(torch.from_numpy(net.places))


def _convolve(
    row: np.ndarray, mixer: Any, batch: int, given: Tensor, out: Tensor, states: np.ndarray,
    keep: Callable[[Tensor], int],
) -> None:  # fmt: skip
    from ...kernels.compiled.mixers import convolve

    channels, _, taps = mixer.conv.weight.shape
    row[[r.OPERATION, r.ITEMS]] = convolve.address, batch * -(-channels // _CHUNK)
    row[[r.K_BATCH, r.K_CHANNELS, r.K_TAPS, r.K_CHUNK]] = batch, channels, taps, _CHUNK
    row[[r.K_IN, r.K_OUT, r.K_STATES]] = given.data_ptr(), out.data_ptr(), states.ctypes.data
    row[r.K_WEIGHTS] = keep(mixer.conv.weight[:, 0].float())
    row[r.K_BIAS] = 0 if mixer.conv.bias is None else keep(mixer.conv.bias.float())
