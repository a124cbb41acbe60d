"""Codebooks: what the metric buys, and what it reduces to."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from stratakv.kernels.codebook_scores import half_norms, nearest_codewords
from stratakv.retrieval.structures.codebook import learn_codebooks, query_metric, score_error


def anisotropic(tokens: int, seed: int, dim: int = 16) -> tuple[Tensor, Tensor]:
    """Keys and queries `[1, tokens, D]`: keys vary most where queries look least, as real ones do."""
    generator = torch.Generator().manual_seed(seed)
    keys = torch.randn(1, tokens, dim, generator=generator) * torch.logspace(0.5, -0.5, dim)
    queries = torch.randn(1, tokens, dim, generator=generator) * torch.logspace(-1.5, 1.0, dim)
    return keys + 3, queries


def gram(queries: Tensor) -> Tensor:
    return queries.double().transpose(1, 2) @ queries.double()


def even(dim: int = 16, scale: float = 1.0) -> Tensor:
    return scale * torch.eye(dim, dtype=torch.float64).unsqueeze(0)


def test_scores_of_new_text_are_kept_far_better_than_by_plain_kmeans() -> None:
    keys, queries = anisotropic(4096, seed=0)
    new, asked = anisotropic(1024, seed=1)
    aware = learn_codebooks(keys, query_metric(gram(queries)), 256)
    plain = learn_codebooks(keys, even(), 256)
    ours, theirs = (score_error(new, gram(asked), books).item() for books in (aware, plain))
    assert ours < 0.5 * theirs, (ours, theirs)
    scores, coded = (asked @ of.transpose(1, 2) for of in (new, decoded(new, aware)))
    measured = (scores - coded).square().mean() / (scores - scores.mean(-1, keepdim=True)).square().mean()
    assert ours == pytest.approx(measured.item(), rel=1e-4), "the error is what it says it is"


def decoded(keys: Tensor, books: dict[str, Tensor]) -> Tensor:
    codewords, center, metric = books["codewords"].float(), books["center"], books["metric"]
    codes = nearest_codewords(keys - center, metric, codewords, half_norms(metric, codewords))
    return codewords.gather(1, codes.unsqueeze(-1).expand_as(keys)) + center


def test_even_queries_make_it_plain_kmeans() -> None:
    """Whatever H's size."""
    keys, _ = anisotropic(600, seed=0)
    plain = learn_codebooks(keys, even(), 20)
    scaled = learn_codebooks(keys, even(scale=16.0), 20)
    assert torch.equal(plain["codewords"], scaled["codewords"])
    nearest = torch.cdist(keys - plain["center"], plain["codewords"].float()).argmin(-1)
    codes = nearest_codewords(
        keys - plain["center"], plain["metric"], plain["codewords"], half_norms(plain["metric"], plain["codewords"])
    )
    assert torch.equal(codes, nearest)


def test_a_codeword_is_the_mean_of_the_keys_of_its_cluster() -> None:
    """Though H has a direction that no query has, along which whitened keys say nothing."""
    generator = torch.Generator().manual_seed(0)
    clumps = 300 + 40 * torch.eye(4, 8)
    keys = (clumps.repeat(25, 1) + torch.randn(100, 8, generator=generator)).unsqueeze(0)
    queries = torch.randn(1, 50, 8, generator=generator)
    queries[..., 7] = 0
    books = learn_codebooks(keys, query_metric(gram(queries)), 6)
    codewords, metric = books["codewords"].float(), books["metric"]
    codes = nearest_codewords(keys - books["center"], metric, codewords, half_norms(metric, codewords))[0]
    assert len(codes.unique()) == 6
    means = torch.stack([keys[0, codes == code].mean(0) for code in range(6)])
    torch.testing.assert_close(codewords[0] + books["center"][0], means, rtol=0, atol=0.02)


def test_an_empty_cluster_keeps_its_centroid() -> None:
    """Sixteen codewords for two different keys: whatever the spare ones are, they are finite and of no harm."""
    keys = torch.tensor([[1.0, 2.0], [5.0, -3.0]]).repeat(10, 1).unsqueeze(0)
    books = learn_codebooks(
        keys, query_metric(gram(torch.randn(1, 9, 2, generator=torch.Generator().manual_seed(0)))), 16
    )
    assert books["codewords"].isfinite().all()
    torch.testing.assert_close(decoded(keys, books), keys, rtol=0, atol=5e-3)


def test_the_same_keys_give_the_same_codebook() -> None:
    keys, queries = anisotropic(500, seed=3)
    one, two = (learn_codebooks(keys, query_metric(gram(queries)), 30) for _ in range(2))
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_queries_that_are_all_zero() -> None:
    metric = query_metric(torch.zeros(1, 4, 4))
    torch.testing.assert_close(metric, even(4, 1e-6))


@pytest.mark.parametrize("count", [0, 11, 2**15 + 1])
def test_the_number_of_codewords_is_checked(count: int) -> None:
    with pytest.raises(ValueError, match=f"not {count} of 10 keys"):
        learn_codebooks(torch.zeros(1, 10, 4), even(4), count)
