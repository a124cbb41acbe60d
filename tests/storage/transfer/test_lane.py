"""Where there is no GPU a lane does what it is told at once; the test of CUDA's is in tests/gpu."""

from __future__ import annotations

import torch

from stratakv.storage.memory.in_flight import InFlight
from stratakv.storage.transfer.lane import Lane, lane_of


def test_memory_that_the_host_writes_has_no_order_of_its_own() -> None:
    lane, out, reads = lane_of(torch.device("cpu")), torch.zeros(3, dtype=torch.uint8), InFlight()
    assert type(lane) is Lane
    lane.after(lane.now())
    lane.copy(out, torch.arange(3, dtype=torch.uint8))
    assert out.tolist() == [0, 1, 2]
    lane.note(reads)
    assert not reads._last
    lane.arrival().wait()
