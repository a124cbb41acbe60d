"""Product quantisation: nearest centroids, part by part, and codebooks that fit their data."""

from __future__ import annotations

import pytest
import torch

from stratakv.retrieval.structures.product_codebook import (
    CENTROIDS,
    ProductEncoder,
    _by_faiss,
    centroids_of,
    train_codebooks,
)


def draw(count: int, width: int = 12) -> torch.Tensor:
    return torch.randn(2, count, width, generator=torch.Generator().manual_seed(count))


def decoded(codebooks: torch.Tensor, codes: torch.Tensor) -> torch.Tensor:
    width = codebooks.shape[-1]
    each = codes.long().transpose(1, 2).unsqueeze(-1).expand(-1, -1, -1, width)
    return codebooks.float().gather(2, each).transpose(1, 2).flatten(2)


def test_codes_name_the_nearest_centroids() -> None:
    """On both ways to find them."""
    x, codebooks = draw(500), train_codebooks(draw(600), 3)
    encoder = ProductEncoder(codebooks)
    distances = torch.cdist(x.view(2, 500, 3, 4).transpose(1, 2), codebooks.float())  # [G, M, n, C]
    best = distances.min(-1).values
    for codes in (encoder.encode(x), encoder._nearest(x)):
        assert codes.dtype == torch.uint8
        found = distances.gather(3, codes.long().transpose(1, 2).unsqueeze(-1))[..., 0]
        assert torch.allclose(found, best, atol=1e-5)


@pytest.mark.parametrize("pieces", [[1] * 40, [3, 30, 7], [40]], ids=len)
def test_a_code_does_not_depend_on_its_company(pieces: list[int]) -> None:
    x, encoder = draw(40), ProductEncoder(train_codebooks(draw(600), 3))
    assert torch.equal(torch.cat([encoder.encode(run) for run in x.split(pieces, 1)], 1), encoder.encode(x))


@pytest.mark.parametrize("count", [0, 1, 100, CENTROIDS])
def test_few_vectors_are_their_own_centroids(count: int) -> None:
    x = draw(count)
    codebooks = train_codebooks(x, 3)
    assert torch.isfinite(codebooks).all()
    assert torch.allclose(decoded(codebooks, ProductEncoder(codebooks).encode(x)), x, atol=1e-2)


@pytest.mark.parametrize("kind", ["apart", "alike"])
def test_centroids_found_at_once_are_as_near_as_faiss_finds_them(kind: str) -> None:
    """In compiled loops, and where a GPU learns them. Vectors that are all alike leave most centroids without any."""
    x = draw(1024, 48) if kind == "apart" else draw(1, 48).expand(-1, 1024, -1).contiguous()
    split = x.view(2, 1024, 6, 8).transpose(1, 2)
    ways = (lambda: _by_faiss(x, 6), lambda: train_codebooks(x, 6), lambda: centroids_of(split).half())
    books = [way() for way in ways]
    assert all(torch.equal(found, way()) for found, way in zip(books, ways, strict=True)), (
        "they differ from time to time"
    )
    assert {(found.shape, found.dtype) for found in books} == {((2, 6, CENTROIDS, 8), torch.float16)}
    lost = [float((decoded(found, ProductEncoder(found).encode(x)) - x).square().mean()) for found in books]
    assert max(lost[1:]) <= 1.03 * lost[0] + 1e-6


def test_more_parts_lose_less() -> None:
    x = draw(3000)
    lost = []
    for parts in (1, 2, 4, 12):
        codebooks = train_codebooks(x, parts)
        lost.append(float((decoded(codebooks, ProductEncoder(codebooks).encode(x)) - x).square().mean()))
    assert lost == sorted(lost, reverse=True)
    assert lost[0] < 0.5
    assert lost[-1] < 1e-3
