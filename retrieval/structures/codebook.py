"""Codebooks of a layer's un-rotated keys, one per KV head, learned once from a corpus (A2ATS, arXiv 2502.12665).

A codebook is a k-means of keys where distance is the mean squared change of q.k over the queries of calibration:
H = Q^T Q over all query heads of the KV head, and (k - c) H (k - c)^T = |(k - c) L|^2 with H = L L^T.

Shapes  keys [G, n, D], before RoPE   queries [G, m, D], turned to the distance keys are scored at   metric [G, D, D]
"""

from __future__ import annotations

import torch
from torch import Tensor

from ...kernels.codebook_scores import half_norms, nearest_codewords

ITERATIONS = 10
"""Iterations of k-means. On SmolLM2-135M twice as many lower the held-out error of scores by less than 1%."""
MAX_CODEWORDS = 2**15
"""The most codewords of a codebook: codes are int16."""
_RIDGE = 1e-6
_SEED = 20250218


def query_metric(gram: Tensor) -> Tensor:
    """H from Q^T Q: divided by the RMS of its entries, plus 1e-6 I, so that it has a Cholesky factor. float64."""
    entries = gram.double()
    size = entries.square().mean((1, 2), keepdim=True).sqrt().clamp(min=torch.finfo(torch.float64).tiny)
    return entries / size + _RIDGE * torch.eye(gram.shape[-1], dtype=torch.float64, device=gram.device)


def learn_codebooks(keys: Tensor, metric: Tensor, num_codewords: int) -> dict[str, Tensor]:
    """Learn a codebook for each KV head, on the CPU.

    Args:
        keys: at least as many as codewords. metric: from `query_metric`.

    Returns:
        `codewords` fp16 `[G, N, D]`, relative to `center` fp32 `[G, 1, D]`, the mean key: keys of models with biases
        lie far from zero and close together. `metric` fp32 `[G, D, D]`.

    Raises:
        ValueError: too many codewords, for the keys or at all.
    """
    if not 1 <= num_codewords <= min(MAX_CODEWORDS, keys.shape[1]):
        raise ValueError(
            f"a codebook has 1 to {MAX_CODEWORDS} codewords and no more than there are keys, "
            f"not {num_codewords} of {keys.shape[1]} keys"
        )
    keys, metric = keys.float().cpu(), metric.double().cpu()
    center = keys.double().mean(1, keepdim=True).float()
    codewords = torch.stack([_kmeans(k, h, num_codewords) for k, h in zip(keys - center, metric, strict=True)])
    return {"codewords": codewords.half(), "center": center, "metric": metric.float()}


def _kmeans(keys: Tensor, metric: Tensor, count: int) -> Tensor:
    """Codewords fp32 `[count, D]`: the plain mean of each cluster's keys. The mean commutes with L, so nothing goes
    back through L^-1, which is ill-conditioned; only the centroid of a cluster that ended empty does."""
    import faiss  # only whoever learns a codebook needs it

    root = torch.linalg.cholesky(metric)
    white = (keys.double() @ root).float().contiguous().numpy()
    kmeans = faiss.Kmeans(
        keys.shape[1], count, niter=ITERATIONS, seed=_SEED, min_points_per_centroid=1,
        max_points_per_centroid=-(-len(keys) // count),
    )  # fmt: skip
    kmeans.train(white)
    nearest = torch.from_numpy(kmeans.assign(white)[1])
    sums = torch.zeros(count, keys.shape[1], dtype=torch.float64).index_add_(0, nearest, keys.double())
    sizes = nearest.bincount(minlength=count).unsqueeze(1)
    centroids = torch.from_numpy(kmeans.centroids).double()
    unwhitened = torch.linalg.solve_triangular(root, centroids, upper=False, left=False)
    return torch.where(sizes > 0, sums / sizes.clamp(min=1), unwhitened).float()


def score_error(keys: Tensor, gram: Tensor, codebooks: dict[str, Tensor]) -> Tensor:
    """Mean squared error of q.k when the keys `[G, n, D]` are replaced by their codewords, over queries with
    Q^T Q = `gram` `[G, D, D]`, as a share of the variance of q.k over the keys; float64 `[G]`."""
    codewords, center, metric = (codebooks[name].to(keys.device) for name in ("codewords", "center", "metric"))
    apart = keys.float() - center
    codes = nearest_codewords(apart, metric, codewords, half_norms(metric, codewords))
    lost = apart - codewords.float().gather(1, codes.unsqueeze(-1).expand_as(apart))
    spread = apart - apart.mean(1, keepdim=True)
    return _mean_square(lost, gram) / _mean_square(spread, gram)


def _mean_square(vectors: Tensor, gram: Tensor) -> Tensor:
    wide = vectors.double()
    return ((wide @ gram.to(wide)) * wide).sum((1, 2)) / wide.shape[1]
