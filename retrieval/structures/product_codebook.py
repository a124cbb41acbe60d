"""Product quantisation: a vector as one byte per part, the number of the nearest centroid of that part.

Shapes  x [G, n, W]   codebooks [G, M, C, W/M]   codes uint8 [G, n, M]
Paper   Jegou et al., Product quantization for nearest neighbor search (2011)
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from ...kernels.compiled.kept import BUSY, Cache

if TYPE_CHECKING:
    import faiss

CENTROIDS = 256
"""Centroids per part: as many as a byte can number."""
_COMPILED_WIDTH = 8
"""The width of a part that compiled loops are made for: what `part_width` is unless somebody says otherwise."""
_ITERATIONS = 4
_TRAINING = 1024
"""The most vectors that k-means sees. On real keys 4,096 and more iterations rank tokens no better, and cost four times
as much."""


def train_codebooks(x: Tensor, parts: int) -> Tensor:
    """Learn codebooks fp16 `[G, M, 256, W/M]` by k-means from x fp32 `[G, m, W]`. With no more vectors than centroids,
    the vectors themselves are the centroids."""
    groups, count, width = x.shape
    if count <= CENTROIDS:
        padded = torch.zeros(groups, CENTROIDS, width, dtype=torch.float32, device=x.device)
        padded[:, :count] = x
        return padded.view(groups, CENTROIDS, parts, -1).transpose(1, 2).half().contiguous()
    sample = x[:, torch.arange(min(count, _TRAINING), device=x.device) * count // min(count, _TRAINING)]
    if x.device.type != "cpu":
        return centroids_of(sample.view(groups, -1, parts, width // parts).transpose(1, 2)).half()
    if width == _COMPILED_WIDTH * parts and Cache.folder is not None and (learn := _compiled()) is not None:
        begins = _begins(sample.shape[1]).numpy()
        return torch.from_numpy(learn(sample.numpy(), parts, begins, _ITERATIONS, torch.get_num_threads())).half()
    return _by_faiss(sample, parts)


@cache
def _compiled() -> Callable[[np.ndarray, int, np.ndarray, int, int], np.ndarray] | None:
    """k-means in compiled loops, a fifth of faiss's time; None where numba is missing or cannot be used."""
    try:
        with BUSY:
            from ...kernels.compiled.centroids import learn, learned

            learn.address  # noqa: B018 - asking compiles it
    except (ImportError, OSError):
        return None
    return learned


def _begins(count: int) -> Tensor:
    """Which vectors are the centroids at first, int64 `[256]`."""
    return torch.randperm(count, generator=torch.Generator().manual_seed(0))[:CENTROIDS]


def _by_faiss(sample: Tensor, parts: int) -> Tensor:
    import faiss  # here and below, not for a chat too short to be trained on: it takes as long as numpy to load

    found, width = [], sample.shape[2]
    for rows in sample.numpy():
        quantizer = faiss.ProductQuantizer(width, parts, 8)
        quantizer.cp.niter, quantizer.cp.min_points_per_centroid = _ITERATIONS, 1
        quantizer.train(np.ascontiguousarray(rows))
        found.append(faiss.vector_to_array(quantizer.centroids).reshape(parts, CENTROIDS, -1))
    return torch.from_numpy(np.stack(found)).half()


def centroids_of(x: Tensor) -> Tensor:
    """k-means of each part by itself, all of them at once: fp32 `[G, M, m, W/M]`, more than 256 vectors, to
    `[G, M, 256, W/M]`.

    It runs where the vectors are, so that a prompt on a GPU does not wait for a CPU at each of its heads. The same
    vectors give the same centroids: sums are products with a table of who belongs where, not additions in any order.
    """
    found = x[:, :, _begins(x.shape[2]).to(x.device)]
    numbers = torch.arange(CENTROIDS, device=x.device).unsqueeze(1)
    for _ in range(_ITERATIONS):
        nearest = (x @ found.transpose(2, 3) - 0.5 * found.square().sum(-1).unsqueeze(2)).argmax(-1)
        belongs = (nearest.unsqueeze(2) == numbers).to(x.dtype)
        members = belongs.sum(-1, keepdim=True)
        found = torch.where(members > 0, belongs @ x / members.clamp(min=1), found)  # nobody's stays where it is
    return found


class ProductEncoder:
    """Finds nearest centroids. Each vector is encoded by itself: its code does not depend on the others in the call."""

    def __init__(self, codebooks: Tensor) -> None:
        self.codebooks = codebooks.float().transpose(2, 3).contiguous().transpose(2, 3)
        """fp32 `[G, M, C, W/M]`, centroids as columns."""
        if codebooks.device.type == "cpu":
            self._quantizers = [self._quantizer(book.numpy()) for book in self.codebooks]

    @staticmethod
    def _quantizer(centroids: np.ndarray) -> faiss.ProductQuantizer:
        import faiss

        parts, _, width = centroids.shape
        quantizer = faiss.ProductQuantizer(parts * width, parts, 8)
        faiss.copy_array_to_vector(np.ascontiguousarray(centroids).ravel(), quantizer.centroids)
        return quantizer

    def encode(self, x: Tensor) -> Tensor:
        """Encode fp32 vectors `[G, n, W]`. Returns codes uint8 `[G, n, M]`."""
        if not x.shape[1]:
            return torch.empty(x.shape[0], 0, self.codebooks.shape[1], dtype=torch.uint8, device=x.device)
        if x.device.type != "cpu":
            return self._nearest(x)
        each = zip(self._quantizers, x.numpy(), strict=True)
        return torch.stack([torch.from_numpy(q.compute_codes(np.ascontiguousarray(rows))) for q, rows in each])

    def _nearest(self, x: Tensor) -> Tensor:
        """Encode by the largest x.c - |c|^2 / 2, in blocks of vectors that bound the table of all products."""
        groups, parts, _, width = self.codebooks.shape
        bias = -0.5 * self.codebooks.square().sum(-1).unsqueeze(2)  # [G, M, 1, C]
        split = x.view(groups, -1, parts, width).transpose(1, 2)
        blocks = [
            (block @ self.codebooks.transpose(2, 3) + bias).argmax(-1)
            for block in torch.chunk(split, -(-split.shape[2] // 4096), 2)
        ]
        return torch.cat(blocks, 2).transpose(1, 2).to(torch.uint8).contiguous()
