"""Memory of an arena: there at once, touched when used, and gone with its tensor."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import psutil
import pytest
import torch

from stratakv.storage.memory.unforked import unforked


def test_it_is_memory() -> None:
    found = unforked(3, 5)
    assert (found.dtype, tuple(found.shape)) == (torch.uint8, (3, 5))
    found[:] = torch.arange(15, dtype=torch.uint8).view(3, 5)
    assert found.sum() == 105


def test_none_is_none() -> None:
    assert tuple(unforked(0, 5).shape) == (0, 5)


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere it is plain memory")
def test_nothing_is_touched() -> None:
    before = psutil.Process().memory_info().rss
    found = unforked(1 << 14, 1 << 14)
    assert psutil.Process().memory_info().rss - before < 1 << 26
    assert found.nbytes == 1 << 28


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere it is plain memory")
def test_more_than_there_can_be_is_refused() -> None:
    with pytest.raises(MemoryError, match="bytes of host memory cannot be reserved"):
        unforked(1 << 30, 1 << 30)


@pytest.mark.skipif(not Path("/sys/kernel/mm/transparent_hugepage").exists(), reason="this system has none")
def test_huge_pages_are_asked_for() -> None:
    found = unforked(4, 1 << 20)
    for mapping in re.split(r"\n(?=[0-9a-f]+-[0-9a-f]+ )", Path("/proc/self/smaps").read_text()):
        begin, end = (int(address, 16) for address in mapping.split()[0].split("-"))
        if begin <= found.data_ptr() < end:
            assert "hg" in mapping.partition("VmFlags:")[2].split()
            return
    pytest.fail("the memory is not mapped")
