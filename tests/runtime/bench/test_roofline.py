"""The roofline is the slowest of three edges."""

from __future__ import annotations

import pytest

from stratakv.runtime.bench.bandwidths import Bandwidths
from stratakv.runtime.bench.roofline import Traffic

EDGES = Bandwidths(memory=100.0, link=10.0, disk=1.0)


@pytest.mark.parametrize(
    ("traffic", "bound_s"),
    [
        (Traffic(weights=300, kv=100), 4),
        (Traffic(weights=300, kv=50, index=50), 4),
        (Traffic(weights=300, kv=100, link=50), 5),
        (Traffic(weights=300, kv=100, link=50, disk=8), 8),
    ],
)
def test_the_slowest_edge_bounds_a_step(traffic: Traffic, bound_s: float) -> None:
    found = traffic.against(EDGES, 2 * bound_s)
    assert (found["bound_s"], found["share"]) == (bound_s, 0.5)
    assert max(found["memory_s"], found["link_s"], found["disk_s"]) == bound_s


def test_a_step_that_is_faster_than_its_bytes_has_no_share() -> None:
    traffic = Traffic(weights=300, kv=100)
    assert traffic.against(EDGES, 4)["share"] == 1
    assert traffic.against(EDGES, 3.9)["share"] is None
