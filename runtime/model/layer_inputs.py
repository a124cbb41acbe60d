"""What a layer reads of a token besides the hidden state: a few numbers of its own, from two places.

    table        a row for each token, with a part for each layer
    projection   of the embedded token, a part for each layer, normed

Shapes  B sequences, T tokens, C hidden size, N layers, P numbers of a layer
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..untrusted.family import Form
from .norm import Norm
from .products import Linear


class Matrices(Protocol):
    """Whoever has the numbers of parameters that have no memory (`file_weights`)."""

    def rows(self, parameter: Tensor, ids: Tensor) -> Tensor:
        """The rows that ids of any shape name, `[.., K]`."""

    def multiply(self, layer: Linear, x: Tensor, some: slice) -> Tensor:
        """The product of `[.., K]` with some rows of a linear layer's weight, in the dtype of x."""


class LayerTables(nn.Module):
    """The weights that a model's layers have in common for it."""

    def __init__(self, config: Any, form: Form, vocabulary: int, width: int) -> None:
        super().__init__()
        self.width, self.root, self.factor = width, config.hidden_size**-0.5, width**0.5
        self.table = nn.Parameter(torch.empty(vocabulary, config.num_hidden_layers * width))
        self.projection = Linear(config.hidden_size, config.num_hidden_layers * width, bias=False)
        self.norm = Norm(width, config, form)

    def forward(self, layer: int, ids: Tensor, embedded: Tensor, in_file: Matrices | None = None) -> Tensor:
        """Those of a layer, `[.., P]`, of tokens `[..]` that are embedded as `[.., C]`. `in_file` has the matrices, if
        these have no memory."""
        own = slice(layer * self.width, (layer + 1) * self.width)
        if in_file is None:
            rows = self.table[:, own][ids]
            made = F.linear(embedded, self.projection.weight[own].to(embedded.dtype))
        else:
            rows = in_file.rows(self.table, ids)[..., own]
            made = in_file.multiply(self.projection, embedded, own)
        out: Tensor = (self.norm(made * self.root) + (rows * self.factor).to(embedded.dtype)) * 2**-0.5
        return out


class LayerInputs:
    """Those of some tokens, made layer by layer: of all layers together they are wider than hidden states.

    Args:
        tables: of the model; None: its layers read nothing besides.
        ids: `[.., T]`. embedded: `[.., T, C]`, of which a copy is kept.
        in_file: has the model's matrices; None: it has them itself.
    """

    def __init__(
        self, tables: LayerTables | None, ids: Tensor | np.ndarray, embedded: Tensor, in_file: Matrices | None = None
    ) -> None:
        self._tables, self._in_file = tables, in_file
        if tables is not None:
            there = torch.from_numpy(ids.astype(np.int64)) if isinstance(ids, np.ndarray) else ids
            self._ids, self._embedded = there.to(embedded.device), embedded.clone()

    def of(self, layer: int, rows: slice = slice(None)) -> Tensor | None:
        """What a layer reads of some rows, `[.., rows, P]`."""
        if self._tables is None:
            return None
        found: Tensor = self._tables(layer, self._ids[..., rows], self._embedded[..., rows, :], self._in_file)
        return found
