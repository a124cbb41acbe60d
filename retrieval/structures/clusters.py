"""Clusters of keys by k-means, neighbours wherever they stand in the text; and segments, runs of pages.

Shapes  keys [G, n, D]   centroids fp32 [G, C, D]   numbers of clusters int64 [G, n]
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..index import Rows

ITERATIONS = 5
"""Of Lloyd's: few, since prompts wait for them."""
_BLOCK = 4096
"""Keys whose distances are held at a time."""


def learn_centroids(keys: Tensor, count: int) -> Tensor:
    """Learn `count` centroids, no more than there are keys, from `keys`. The first ones are keys evenly spaced; a
    centroid whose cluster is empty stays where it is."""
    wide = keys.float()
    centroids = wide[:, torch.arange(count, device=keys.device) * wide.shape[1] // max(count, 1)]
    for _ in range(ITERATIONS if count else 0):
        each = zip(nearest(wide, centroids), wide, centroids, strict=True)
        centroids = torch.stack([_means(*one) for one in each])
    return centroids


def _means(numbers: Tensor, keys: Tensor, centroids: Tensor) -> Tensor:
    """By a product: sums in no fixed order would make centroids differ from run to run on a GPU."""
    belongs = (numbers == torch.arange(len(centroids), device=keys.device).unsqueeze(1)).to(keys)
    sizes = belongs.sum(1, keepdim=True)
    return torch.where(sizes > 0, belongs @ keys / sizes.clamp(min=1), centroids)


def nearest(keys: Tensor, centroids: Tensor) -> Tensor:
    """The number of the centroid nearest to each key. Each key is looked at by itself, up to rounding."""
    bias = centroids.square().sum(-1).unsqueeze(1) / 2
    blocks = torch.split(keys.float(), _BLOCK, 1)
    return torch.cat([(block @ centroids.transpose(1, 2) - bias).argmax(-1) for block in blocks], 1)


def page_means(keys: Tensor, page_size: int) -> Tensor:
    """The mean key of each page, fp32 `[G, n / page_size, D]`."""
    groups, count, dim = keys.shape
    return keys.float().reshape(groups, count // page_size, page_size, dim).mean(2)


class Clustered:
    """Clusters of the tokens before `seen`, and the pages behind them, which join into segments.

    Args:
        codes: int16 `[G, n, 1]`, the cluster of each token.
        means: fp32 `[G, p, D]`, the mean key of each page's segment as far as that page.
        places: int64 `[1, p, 1]`, how many pages of its segment come before a page.
    """

    def __init__(self, seen: int, centroids: Tensor, codes: Rows, means: Rows, places: Rows) -> None:
        self.seen, self.centroids, self.codes, self.means, self.places = seen, centroids, codes, means, places

    @classmethod
    def learned(cls, keys: Tensor, seen: int, count: int) -> Clustered:
        """Centroids of the sample `keys`, and no token yet."""
        wide, number = keys[:, :0].float(), torch.int64
        codes, places = wide[..., :1].to(torch.int16), wide[:1, :, :1].to(number)
        return cls(seen, learn_centroids(keys, count), Rows(codes), Rows(wide), Rows(places))

    def append(self, keys: Tensor, page_size: int, *, joins: bool) -> None:
        """Add whole pages of keys. With `joins` the first one goes on with the last segment, if there is any."""
        split = min(max(0, self.seen - self.codes.count), keys.shape[1])
        if split:
            self.codes.append(nearest(keys[:, :split], self.centroids).to(torch.int16).unsqueeze(-1))
        means = page_means(keys[:, split:], page_size)
        places = torch.zeros(1, means.shape[1], 1, dtype=torch.int64, device=keys.device)
        if joins and self.means.count and means.shape[1]:
            places[0, 0] = before = self.places.data[0, -1] + 1
            means[:, 0] = torch.lerp(self.means.data[:, -1], means[:, 0], 1 / (before + 1))
        self.means.append(means)
        self.places.append(places)

    def truncate(self, num_tokens: int, page_size: int) -> None:
        self.codes.truncate(num_tokens)
        for rows in (self.means, self.places):
            rows.truncate((num_tokens - self.codes.count) // page_size)

    def units(self, num_tokens: int, page_size: int) -> tuple[Tensor, Tensor]:
        """Mean keys fp32 `[G, U, D]` of clusters and then segments, as far as the first `num_tokens` tokens, and the
        unit of each of these, int64 `[G, num_tokens]`."""
        codes = self.codes.data[:, :num_tokens, 0].long()
        places = self.places.data[0, : (num_tokens - codes.shape[1]) // page_size, 0]
        ends = torch.nonzero(torch.cat([places[1:] == 0, places[:1] == 0])).flatten()
        segments = (places == 0).cumsum(0) - 1 + self.centroids.shape[1]
        of_pages = segments.repeat_interleave(page_size).expand(len(codes), -1)
        return torch.cat([self.centroids, self.means.data[:, ends]], 1), torch.cat([codes, of_pages], 1)
