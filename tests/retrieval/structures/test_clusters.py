"""Clusters gather keys that are alike, segments pages that follow one another: as naive computations have them."""

from __future__ import annotations

import torch
from torch import Tensor

from stratakv.retrieval.structures.clusters import ITERATIONS, Clustered, learn_centroids, nearest

GENERATOR = torch.Generator().manual_seed(0)
KEYS = torch.randn(2, 64, 5, generator=GENERATOR)
PAGE = 4


def kmeans(keys: Tensor, count: int) -> Tensor:
    """Of one KV head, key by key."""
    centroids = [keys[at * len(keys) // count].double() for at in range(count)]
    for _ in range(ITERATIONS):
        clusters: list[list[Tensor]] = [[] for _ in centroids]
        for key in keys.double():
            clusters[min(range(count), key=lambda at: float((key - centroids[at]).square().sum()))].append(key)
        centroids = [sum(c, torch.zeros(5)) / len(c) if c else old for c, old in zip(clusters, centroids, strict=True)]
    return torch.stack(centroids).float()


def test_centroids_are_means_of_what_is_nearest_to_them() -> None:
    found = learn_centroids(KEYS, 7)
    torch.testing.assert_close(found, torch.stack([kmeans(keys, 7) for keys in KEYS]))
    distances = (KEYS.unsqueeze(2) - found.unsqueeze(1)).square().sum(-1)
    assert torch.equal(nearest(KEYS, found), distances.argmin(-1))


def test_a_centroid_that_nothing_is_nearest_to_stays() -> None:
    same = torch.ones(1, 8, 3)
    assert torch.equal(learn_centroids(same, 4), same[:, :4])
    assert learn_centroids(same[:, :0], 0).shape == (1, 0, 3)


def test_pages_join_into_segments_and_every_token_has_its_unit() -> None:
    """16 tokens of a prompt, then pages of which the second, third and sixth go on with the one before."""
    tokens = Clustered.learned(KEYS[:, :16], 16, 3)
    tokens.append(KEYS[:, :8], PAGE, joins=True)
    tokens.append(KEYS[:, 8:20], PAGE, joins=True)
    for page, joins in enumerate((True, True, False, False, True), 5):
        tokens.append(KEYS[:, page * PAGE : (page + 1) * PAGE], PAGE, joins=joins)
    for _ in range(2):
        units, unit_of = tokens.units(40, PAGE)
        segments = [KEYS[:, 16:28].mean(1), KEYS[:, 28:32].mean(1), KEYS[:, 32:40].mean(1)]
        torch.testing.assert_close(units, torch.cat([tokens.centroids, torch.stack(segments, 1)], 1))
        assert torch.equal(unit_of[:, :16], nearest(KEYS[:, :16], tokens.centroids))
        assert unit_of[:, 16:].tolist() == [[3] * 12 + [4] * 4 + [5] * 8] * 2
        units, unit_of = tokens.units(24, PAGE)
        torch.testing.assert_close(units[:, 3:], KEYS[:, None, 16:24].mean(2))
        assert unit_of[:, 16:].tolist() == [[3] * 8] * 2
        tokens.truncate(36, PAGE)
        tokens.append(KEYS[:, 36:40], PAGE, joins=True)
