"""A compiled step's highest logits are those that `Head` computes."""

from __future__ import annotations

import pytest
import torch
from compiled_rows import work
from torch import nn

from stratakv.runtime.model.head import CANDIDATES, Head
from stratakv.runtime.model.products import Product
from stratakv.runtime.model.sharpen_row import SharpenRow


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("has_bias", [False, True])
@pytest.mark.parametrize("vocabulary", [7, 300])
@pytest.mark.parametrize("norm_of", [nn.RMSNorm, nn.LayerNorm])
def test_both_sharpen_the_same_logits(
    norm_of: type[nn.Module], dtype: torch.dtype, has_bias: bool, vocabulary: int
) -> None:
    torch.manual_seed(vocabulary)
    norm, linear = norm_of(24, eps=1e-3), nn.Linear(24, vocabulary, bias=has_bias).to(dtype)
    rounded = (linear.weight.float() * 20).round() / 20
    head = Head(norm, linear, Product(rounded, None if linear.bias is None else linear.bias.float()))
    hidden = torch.randn(3, 24)
    with torch.no_grad():
        nn.init.uniform_(norm.weight, 0.5, 2.0)
        logits, expected = head.product(norm(hidden)), head(hidden)
        before = logits.clone()
        row = SharpenRow(head, logits, hidden)
        work(*row.table)
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-5)
    assert int((logits != before).sum()) == 3 * min(vocabulary, CANDIDATES)
