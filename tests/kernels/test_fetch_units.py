"""Fetching what lacks: the reference and Triton against plain indexing."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from closeness import poison_empty
from torch import Tensor
from triton_device import DEVICE, INTERPRETED, MARKS

from stratakv.kernels.fetch_units import Wanted, fetch_units, fetch_units_reference, fetch_units_triton

pytestmark = MARKS
KERNELS = [fetch_units, fetch_units_reference, fetch_units_triton]


@pytest.fixture(autouse=True)
def _poisoned(monkeypatch: pytest.MonkeyPatch) -> None:
    poison_empty(monkeypatch)


def on_host(tensor: Tensor) -> Tensor:
    """Pinned where there is a device to read it from."""
    return tensor if INTERPRETED else tensor.cpu().pin_memory()


@pytest.mark.parametrize("fetch", KERNELS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.uint8], ids=str)
@pytest.mark.parametrize(
    ("sides", "kept", "units", "count", "width"),
    [(2, 2, 4, 5, 8), (2, 1, 1, 3, 33), (1, 1, 16, 0, 6), (2, 2, 2, 21, 64), (1, 1, 4, 2, 2100)],
)
def test_parts_of_pages(
    fetch: Any, dtype: torch.dtype, sides: int, kept: int, units: int, count: int, width: int
) -> None:
    """Only those that are lacking are written, and each where its entry lies."""
    random, groups, slots, pages, entries = torch.Generator().manual_seed(width), 3, 30, 13, 25
    source = torch.randint(0, 255, (slots, groups, sides, units, width), generator=random).to(dtype)
    table = torch.randperm(slots, generator=random)[:pages].int()
    ids = torch.stack([torch.randperm(pages * units, generator=random)[:count] for _ in range(groups)])
    found = torch.stack([torch.randperm(entries, generator=random)[:count] for _ in range(groups)]).int()
    lacking = torch.rand(groups, count, generator=random) < 0.6
    rows = torch.randperm(kept * groups * entries + 7, generator=random)[:-7].view(kept, groups, entries)
    out = torch.full((rows.numel() + 7, width), 255, dtype=dtype)
    expected = out.clone()
    for side in range(kept):
        for head in range(groups):
            for unit, entry, lacks in zip(ids[head], found[head].tolist(), lacking[head], strict=True):
                page, place = divmod(int(unit), units)
                if lacks:
                    part = source[table[page], head, sides - kept + side, place]
                    expected[rows[side, head, entry]] = part
    wanted = Wanted(*(t.to(DEVICE) for t in (ids, found, lacking, table, rows)), sides, units)
    out = out.to(DEVICE)
    fetch(on_host(source.view(-1, width)), wanted, out)
    assert torch.equal(out.cpu(), expected)


def test_what_does_not_fit_is_refused() -> None:
    ids = torch.zeros(1, 2, dtype=torch.int64)
    wanted = Wanted(ids, ids.int(), ids.bool(), ids[0].int(), ids.view(1, 1, 2), 1, 1)
    with pytest.raises(ValueError, match="one dtype"):
        fetch_units(torch.zeros(4, 3), wanted, torch.zeros(4, 2))
    with pytest.raises(ValueError, match="contiguous"):
        fetch_units(torch.zeros(3, 4).T, wanted, torch.zeros(4, 3))
