"""Scores of product-quantised keys: look-ups equal products with the decoded keys."""

from __future__ import annotations

import pytest
import torch
from closeness import assert_close, poison_empty

from stratakv.kernels.pq_scores import pq_scores, pq_scores_reference, pq_tables


@pytest.mark.parametrize("shape", [(3, 3, 6, 8), (1, 8, 5, 4), (8, 1, 16, 1), (2, 4, 1, 12)], ids=str)
@pytest.mark.parametrize("count", [0, 1, 63, 1000])
def test_look_ups_equal_products_with_decoded_keys(
    shape: tuple[int, int, int, int], count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    poison_empty(monkeypatch)
    groups, repeats, parts, width = shape
    generator = torch.Generator().manual_seed(count)
    codebooks = torch.randn(groups, parts, 256, width, generator=generator).half()
    codes = torch.randint(0, 256, (groups, count, parts), generator=generator).to(torch.uint8)
    q = torch.randn(groups, repeats, parts * width, generator=generator)
    each = codes.long().transpose(1, 2).unsqueeze(-1).expand(-1, -1, -1, width)
    decoded = codebooks.double().gather(2, each).transpose(1, 2).flatten(2)
    expected = q.double() @ decoded.transpose(1, 2)
    tables = pq_tables(q, codebooks)
    assert tables.shape == (groups, repeats, parts, 256)
    assert_close("scores", pq_scores(tables, codes), expected)
    assert_close("reference", pq_scores_reference(tables, codes), expected)
