"""The head: logits over the vocabulary, in fp32 where they are highest.

A product of 16-bit numbers has 16-bit results. Among 49,152 of them the two highest are equal in 3 to 5 % of positions,
and then their places in the vocabulary decide. So the highest are computed again in fp32, from the same weights and
from an output of the last layer that was normed in fp32: some rows of the head, where the product reads all.

Shapes  hidden [B, K]   weight [V, K]   ->  [B, V]
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .products import Product

CANDIDATES = 16
"""The number of highest logits in a row that are computed again. Rounding moves a logit by a few hundredths, past a few
others."""
_ROWS = 64
"""Rows of `hidden` at a time: this many times `CANDIDATES` rows of the head are in memory in fp32."""


class Head:
    """`logits = factor * product(norm(hidden))`; `linear` has the weights that `product` multiplies with, unrounded.
    With a `cap` c, logits x are c * tanh(x / c)."""

    def __init__(
        self, norm: nn.Module, linear: nn.Linear, product: Product, factor: float = 1.0, cap: float | None = None
    ) -> None:
        self.norm, self.linear, self.product, self.factor, self.cap = norm, linear, product, factor, cap

    def __call__(self, hidden: Tensor) -> Tensor:
        """Logits fp32 `[B, V]` of `hidden` `[B, K]` in any floating type."""
        normed: Tensor = self.norm(hidden.float())
        logits = self.product(normed.to(self.product.dtype)).float()
        if self.product.dtype is normed.dtype and self.is_exact:
            return self.scaled(logits)
        for rows in range(0, len(logits), _ROWS):
            self._sharpen(logits[rows : rows + _ROWS], normed[rows : rows + _ROWS])
        return self.scaled(logits)

    def scaled(self, products: Tensor) -> Tensor:
        """The logits that products with the head's rows stand for."""
        scaled = products if self.factor == 1 else products * self.factor
        return scaled if self.cap is None else torch.tanh(scaled / self.cap) * self.cap

    @property
    def is_exact(self) -> bool:
        """The product multiplies with the unrounded weights."""
        return self.product.weight is self.linear.weight

    def _sharpen(self, logits: Tensor, normed: Tensor) -> None:
        """Compute the highest logits of each row again in fp32, in place, from normed fp32 hidden states `[B, K]`.
        Compiled steps do so by `sharpen_row`."""
        ids = logits.topk(min(CANDIDATES, logits.shape[1])).indices
        exact = (self.linear.weight[ids].float() @ normed.unsqueeze(-1)).squeeze(-1)
        bias = self.linear.bias
        logits.scatter_(1, ids, exact if bias is None else exact + bias[ids].float())
