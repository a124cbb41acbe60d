"""What is said of the machine, and how much memory of it is this process's own."""

from __future__ import annotations

import mmap
import threading
from pathlib import Path

import psutil
import pytest
import torch

from stratakv.runtime.process import hardware as hardware_module
from stratakv.runtime.process.hardware import PeakMemory, hardware, private_bytes

BYTES = 32 << 20


def test_a_machine_is_told_by_processor_threads_and_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 7)
    monkeypatch.setattr(Path, "read_text", lambda self: "processor\t: 0\nmodel name\t: A CPU: 2 GHz\nmodel name: B\n")
    found = hardware()
    assert (found["cpu"], found["threads"], found["torch"]) == ("A CPU: 2 GHz", 7, torch.__version__)
    assert found["memory_gb"] == pytest.approx(psutil.virtual_memory().total / 1e9, abs=0.05)
    assert "gpu" not in found


def test_memory_of_ones_own_counts_and_that_of_files_does_not(tmp_path: Path) -> None:
    path, before = tmp_path / "file", private_bytes()
    with path.open("wb") as file:
        file.truncate(BYTES)
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        assert mapped[:: mmap.PAGESIZE].count(0) == BYTES // mmap.PAGESIZE
        assert private_bytes() < before + BYTES // 4
    with mmap.mmap(-1, BYTES, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as own:
        own[:: mmap.PAGESIZE] = b"1" * (BYTES // mmap.PAGESIZE)
        assert before + BYTES // 2 < private_bytes() < before + 2 * BYTES


def test_a_peak_is_the_most_that_was_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    seen, is_past = iter([5, 7, 90, 8]), threading.Event()

    def sample() -> int:
        found = next(seen, 6)
        if found == 6:
            is_past.set()
        return found

    monkeypatch.setattr(hardware_module, "private_bytes", sample)
    with PeakMemory() as memory:
        assert memory.peak >= 5
        assert is_past.wait(60)
    assert memory.peak == 90


def test_a_peak_is_at_least_what_was_there_before(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hardware_module, "private_bytes", lambda: 40)
    with PeakMemory() as memory:
        pass
    assert memory.peak == 40
