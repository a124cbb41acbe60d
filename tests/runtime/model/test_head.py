"""Logits are fp32, and the highest of them those that fp32 gives, whatever the product of a step rounds to."""

from __future__ import annotations

import pytest
import torch

from stratakv.runtime.model.head import CANDIDATES, Head
from stratakv.runtime.model.products import Int8Product, Product


@pytest.mark.parametrize("product", [Product, Int8Product])
@pytest.mark.parametrize("with_bias", [False, True])
def test_the_highest_logits_are_those_of_fp32(product: type[Product], with_bias: bool) -> None:
    """Whatever a 16-bit or 8-bit product makes of them: a random head has many nearly equal ones."""
    generator = torch.Generator().manual_seed(3)
    width, vocabulary, count = 128, 4096, 200
    linear = torch.nn.Linear(width, vocabulary, bias=with_bias).to(torch.bfloat16).requires_grad_(False)
    linear.weight.copy_(torch.randn(vocabulary, width, generator=generator))
    hidden = torch.randn(count, width, generator=generator)
    norm = torch.nn.RMSNorm(width)
    with torch.no_grad():
        logits = Head(norm, linear, product(linear.weight, linear.bias))(hidden)
        exact = norm(hidden) @ linear.weight.float().T
        if linear.bias is not None:
            exact = exact + linear.bias.float()
    assert logits.dtype is torch.float32
    highest = exact.topk(3).indices
    torch.testing.assert_close(logits.gather(1, highest), exact.gather(1, highest), rtol=1e-5, atol=1e-4)
    assert torch.equal(logits.argmax(1), exact.argmax(1))
    assert (logits == exact).sum(1).max() <= vocabulary / 8  # the rest is as the product had it
    assert logits.topk(CANDIDATES).values.unique(dim=1).shape == (count, CANDIDATES)


def test_a_vocabulary_of_few_tokens_is_computed_again_as_a_whole() -> None:
    generator = torch.Generator().manual_seed(4)
    linear = torch.nn.Linear(64, 5, bias=False).to(torch.bfloat16).requires_grad_(False)
    linear.weight.copy_(torch.randn(5, 64, generator=generator))
    hidden = torch.randn(3, 64, generator=generator)
    logits = Head(torch.nn.Identity(), linear, Product(linear.weight, None))(hidden)
    torch.testing.assert_close(logits, hidden @ linear.weight.float().T, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("scale", [1.0, 2.0])
def test_only_what_was_rounded_is_computed_again(scale: float) -> None:
    """A product with the head's own weights in fp32 is the last word; with others, even in fp32, it is not."""
    linear = torch.nn.Linear(64, 32, bias=False).requires_grad_(False)
    product = Product(linear.weight if scale == 1.0 else linear.weight * scale, None)
    head, hidden = Head(torch.nn.Identity(), linear, product), torch.randn(3, 64)
    assert head.is_exact is (scale == 1.0)
    assert torch.equal(head(hidden), product(hidden)) is (scale == 1.0)


def test_logits_stay_within_a_cap() -> None:
    linear = torch.nn.Linear(64, 32, bias=False).to(torch.bfloat16).requires_grad_(False)
    head, hidden = Head(torch.nn.Identity(), linear, Product(linear.weight, None), 2.0), 9 * torch.randn(3, 64)
    plain = head(hidden)
    capped = Head(torch.nn.Identity(), linear, head.product, 2.0, 3.0)(hidden)
    torch.testing.assert_close(capped, 3 * torch.tanh(plain / 3))
    assert capped.abs().max() <= 3 < plain.abs().max()
