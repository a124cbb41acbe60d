"""The rows of a layer's experts compute what the layer computes."""

from __future__ import annotations

import copy
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from compiled_rows import bits, nothing_yet, team

from stratakv.kernels.compiled import record as r
from stratakv.runtime.model.expert_rows import NUM_ROWS, ExpertBuffers
from stratakv.runtime.model.expert_weights import LayerExperts
from stratakv.runtime.model.lean_layer import fused
from stratakv.runtime.model.mlp import Experts
from stratakv.runtime.model.products import Product
from stratakv.runtime.model.strip_rows import fill_products
from stratakv.runtime.untrusted.families import FAMILIES

CONFIG = SimpleNamespace(
    model_type="qwen3_moe", hidden_size=32, intermediate_size=40, hidden_act="silu", num_experts=6,
    num_experts_per_tok=3, moe_intermediate_size=24, norm_topk_prob=True,
)  # fmt: skip


def layer(dtype: torch.dtype) -> Any:
    torch.manual_seed(0)
    experts = Experts(CONFIG, FAMILIES["qwen3_moe"].form).to(dtype)
    with torch.no_grad():
        for parameter in experts.parameters():
            parameter.normal_(0, 0.3)
    return experts.requires_grad_(False)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("batch", [1, 2, 5])
def test_rows_are_the_layer(batch: int, dtype: torch.dtype) -> None:
    """With one buffer for all layers: what another has left there is of no matter."""
    experts, product = layer(dtype), fused(Product)
    wide = copy.deepcopy(experts).float()
    of = LayerExperts.of(experts, product([experts.gate]), product)
    assert of is not None
    buffers, x = ExpertBuffers(of.mixture, batch), torch.randn(batch, 32)
    for _ in range(2):
        buffers.inner.fill_(torch.nan)
        buffers.logits.fill_(torch.nan)
        y = nothing_yet(batch, 32)
        table = np.zeros((1 + NUM_ROWS, r.WIDTH), dtype=np.int64)
        kept = fill_products(table[:1], of.router.strips, batch, buffers.logits)
        buffers.fill(table[1:], of, batch, y, r.SILU)
        for row in (table[0], table[2]):
            row[[r.P_INPUT, r.P_A, r.P_FACTOR]] = r.PLAIN, x.data_ptr(), bits(1)
        team().run(table, 2)
        torch.testing.assert_close(y, wide(x), rtol=1e-4, atol=1e-4)
        assert kept == []
        assert torch.equal(buffers.ids.sort(-1).values, wide.route(wide.gate(x))[1].sort(-1).values)
