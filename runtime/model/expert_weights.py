"""The weights of a layer's experts as compiled steps read them, wherever each lies. Nothing here compiles."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from .mlp import Experts, ExpertsBesideMLP, Mixture, SigmoidExperts
from .products import Product, Strip

Make = Callable[[list[Any]], Product]
"""Makes one product of linear layers over the same input, whose rows lie one below the other."""


@dataclass(frozen=True, slots=True)
class ExpertWeight:
    """The same weight of all experts of a layer."""

    like: Strip
    """That of the first one; all are written so."""
    addresses: np.ndarray
    """int64 `[E]`."""
    biases: tuple[Tensor, ...]
    """fp32 `[rows]` of each; or none."""
    bias_addresses: np.ndarray
    """int64 `[E]`; or none."""
    owners: tuple[object, ...]
    """Keep the memory."""

    @classmethod
    def of(cls, each: list[Product]) -> ExpertWeight | None:
        """None where they are not all alike, or need more than a product with plain rows or blocks."""
        strips = [product.strips for product in each]
        if any(len(some) != 1 or some[0].scale is not None for some in strips):
            return None
        first = strips[0][0]
        form = first.kind, first.rows, first.columns, first.rounds, 0, first.bias is None
        for (one,) in strips:
            if (one.kind, one.rows, one.columns, one.rounds, one.pairs, one.bias is None) != form:
                return None
        addresses = np.array([one.address for (one,) in strips], dtype=np.int64)
        biases = tuple(one.bias.detach().float().contiguous() for (one,) in strips if one.bias is not None)
        bias_addresses = np.array([bias.data_ptr() for bias in biases], dtype=np.int64)
        owners = tuple({id(one.owner): one.owner for (one,) in strips}.values())
        return cls(first, addresses, biases, bias_addresses, owners)


@dataclass(frozen=True, slots=True)
class LayerExperts:
    """The experts of one layer for compiled steps."""

    mixture: Mixture
    router: Product
    gate: ExpertWeight
    up: ExpertWeight
    down: ExpertWeight
    factors: Tensor | None
    """`[E]`, of shares; None: there are none."""

    @classmethod
    def of(cls, experts: Experts, router: Product, product: Make) -> LayerExperts | None:
        """None where compiled steps do not know their weights, or how they are chosen."""
        if isinstance(experts, SigmoidExperts):
            return None
        each = [
            ExpertWeight.of([product([getattr(expert, name)]) for expert in experts.experts])
            for name in ("gate_proj", "up_proj", "down_proj")
        ]
        gate, up, down = each
        if gate is None or up is None or down is None:
            return None
        factors = experts.per_expert_scale if isinstance(experts, ExpertsBesideMLP) else None
        return cls(experts.mixture, router, gate, up, down, factors)
