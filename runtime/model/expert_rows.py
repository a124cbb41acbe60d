"""The experts of a layer as rows of a compiled step's table: their weights wherever each lies, and buffers between.

    router    a product, E logits of each sequence
    ROUTE     K experts of each, and their shares
    gate, up  the chosen experts' rows, one pair of sequence and expert after the other
    down      the shares of what comes of them, added up

Shapes  B sequences, C hidden size, E experts, K of them for each sequence, I their width
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ...kernels.compiled import block_products, blocks, experts, products
from ...kernels.compiled import record as r
from ..process.apart import fp32
from .expert_weights import ExpertWeight, LayerExperts
from .mlp import Mixture
from .products import Strip
from .strip_rows import chunk_of

NUM_ROWS = 4
"""Rows besides the router's product."""


class ExpertBuffers:
    """What the rows of all layers leave for each other, for a batch size."""

    def __init__(self, mixture: Mixture, batch: int) -> None:
        self.logits = fp32(batch, mixture.count)
        self.inner = fp32(batch * mixture.chosen, 2 * mixture.width)
        self.ids = torch.zeros(batch, mixture.chosen, dtype=torch.int64)
        self.shares = fp32(batch, mixture.chosen)

    def fill(self, table: np.ndarray, of: LayerExperts, batch: int, y: Tensor, act: int) -> None:
        """Fill NUM_ROWS rows, all but what x of `gate` is made of, which is the router's.

        Args:
            y: fp32 `[B, C]`. act: of `record`, where the mixture has none of its own.
        """
        route, gate, up, down = table
        route[[r.OPERATION, r.ITEMS, r.BARRIER]] = experts.route.address, batch, 1
        route[[r.R_EXPERTS, r.R_CHOSEN]] = of.mixture.count, of.mixture.chosen
        route[[r.R_LOGITS, r.R_IDS, r.R_SHARES]] = self.logits.data_ptr(), self.ids.data_ptr(), self.shares.data_ptr()
        route[r.R_RENORMALISES] = of.mixture.renormalises
        pairs = batch * of.mixture.chosen
        for row, weight, first in ((gate, of.gate, 0), (up, of.up, of.mixture.width)):
            chunk = self._weight(row, weight, batch, of.mixture)
            row[[r.OPERATION, r.ITEMS]] = experts.each.address, pairs * -(-weight.like.rows // chunk)
            row[[r.MARK, r.P_Y, r.P_STRIDE]] = r.M_GATE_UP, self.inner.data_ptr() + 4 * first, self.inner.shape[1]
        up[[r.P_SAME, r.BARRIER]] = 1, 1
        if _is_arranged_alike(of.gate.like, of.up.like):
            up[r.PREPARE] = 0
        chunk = self._weight(down, of.down, pairs, of.mixture)
        down[[r.OPERATION, r.ITEMS, r.BARRIER]] = experts.together.address, -(-of.down.like.rows // chunk), 1
        down[[r.MARK, r.P_Y, r.P_STRIDE]] = r.M_DOWN, y.data_ptr(), y.shape[1]
        down[[r.P_INPUT, r.P_A, r.P_ACT]] = r.GATED, self.inner.data_ptr(), act
        if of.mixture.clamp is not None:
            down[[r.P_ACT, r.P_LIMIT, r.P_SLOPE]] = r.CLAMPED, *map(r.bits, of.mixture.clamp)

    def _weight(self, row: np.ndarray, weight: ExpertWeight, vectors: int, mixture: Mixture) -> int:
        """Fill in what a row multiplies with. Returns the rows of an item."""
        like, chunk = weight.like, chunk_of(weight.like)
        has_blocks = r.BLOCKS[like.kind][0] > 1
        row[r.PREPARE] = (block_products if has_blocks else products).prepare.address
        row[r.P_ROOM] = experts.vectors_bytes(vectors, like.columns)
        row[r.MEMORY] = row[r.P_ROOM] + 4 * chunk
        row[[r.P_BATCH, r.P_ROWS, r.P_COLUMNS, r.P_CHUNK]] = vectors, like.rows, like.columns, chunk
        row[[r.P_KIND, r.P_WEIGHT]] = like.kind, weight.addresses.ctypes.data
        row[r.P_BIAS] = weight.bias_addresses.ctypes.data if weight.biases else 0
        row[[r.P_IDS, r.P_SHARES, r.P_CHOSEN]] = self.ids.data_ptr(), self.shares.data_ptr(), mixture.chosen
        if has_blocks:
            row[[r.P_CODE, r.P_ROUNDED]] = blocks.rows(like.kind, rounded=like.rounds).address, like.rounds
        return chunk


def _is_arranged_alike(a: Strip, b: Strip) -> bool:
    has_blocks = [r.BLOCKS[strip.kind][0] > 1 for strip in (a, b)]
    return not has_blocks[1] or (has_blocks[0] and a.rounds == b.rounds)
