"""The door of the storage package: its names are those of its modules, and a disk tier needs no tensor library."""

from __future__ import annotations

import subprocess
import sys
from importlib import import_module

import pytest

import stratakv.storage as door


def test_each_name_is_the_one_of_its_module() -> None:
    assert sorted(door.__all__) == sorted(door._HOMES)
    for name, module in door._HOMES.items():
        assert getattr(door, name) is getattr(import_module(f"stratakv.storage.{module}"), name)


def test_a_name_that_it_does_not_have() -> None:
    with pytest.raises(AttributeError, match=r"module 'stratakv.storage' has no attribute 'Nothing'"):
        door.Nothing  # noqa: B018


def test_a_disk_tier_alone_loads_no_tensor_library() -> None:
    probe = "import sys; from stratakv.storage import DiskTier, RecordError; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True)
    loaded = {*done.stdout.split()}
    assert "stratakv.storage.disk.disk_tier" in loaded
    assert not loaded & {"torch", "numpy", "stratakv.storage.tiered_store"}
