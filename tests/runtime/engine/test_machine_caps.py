"""Caps that no machine like this one could fill are refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from stratakv.runtime import KVConfig
from stratakv.runtime.engine import machine_caps
from stratakv.runtime.engine.machine_caps import check_caps


@pytest.fixture(autouse=True)
def _a_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """8 GB of memory, 100 GB of disk, no GPU."""
    monkeypatch.setattr(machine_caps, "total_memory", lambda: 8 * 10**9)
    monkeypatch.setattr(machine_caps, "disk_total", lambda _: 100 * 10**9)
    monkeypatch.setattr(machine_caps, "_GPU_FILES", ())


@pytest.mark.parametrize("caps", [{}, {"host_gb": 8.0}, {"disk_gb": 100.0}, {"gpu_gb": 8.0}, {"disk_gb": 0}])
def test_what_there_is_may_be_asked_for(caps: dict[str, float], tmp_path: Path) -> None:
    check_caps(KVConfig(path=tmp_path, **caps))


@pytest.mark.parametrize(
    ("caps", "says"),
    [
        ({"host_gb": 9.0}, "host_gb is 9, but this machine's memory is 8 GB; lower host_gb"),
        ({"gpu_gb": 9.0}, r"gpu_gb is 9, but this machine's memory \(there is no GPU\) is 8 GB"),
        ({"disk_gb": 101.0}, "disk_gb is 101, but the file system of .* is 100 GB"),
    ],
)
def test_more_is_refused(caps: dict[str, float], says: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=says):
        check_caps(KVConfig(path=tmp_path, **caps))


def test_a_device_has_memory_of_its_own(tmp_path: Path) -> None:
    check_caps(KVConfig(path=tmp_path, gpu_gb=20.0), 24 * 10**9)
    with pytest.raises(ValueError, match="the device's memory is 16 GB"):
        check_caps(KVConfig(path=tmp_path, gpu_gb=20.0), 16 * 10**9)


def test_a_gpu_that_nobody_has_asked_yet_is_not_judged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine_caps, "_GPU_FILES", (str(tmp_path),))
    check_caps(KVConfig(path=tmp_path, gpu_gb=80.0))


def test_a_folder_that_is_not_there_yet_is_on_its_parents_disk(tmp_path: Path) -> None:
    assert machine_caps.disk_free(tmp_path / "a" / "b") > 0
