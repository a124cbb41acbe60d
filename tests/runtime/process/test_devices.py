"""The device and the dtype that a name means on this machine."""

from __future__ import annotations

import pytest
import torch

from stratakv.runtime.process.devices import pick_device, pick_dtype

CPU = torch.device("cpu")


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


@pytest.mark.usefixtures("no_gpu")
def test_without_a_gpu() -> None:
    assert pick_device("auto") == pick_device("cpu") == CPU
    with pytest.raises(ValueError, match="finds no CUDA device; use device=cpu"):
        pick_device("cuda")


def test_with_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert pick_device("auto") == torch.device("cuda")
    assert pick_device("cuda:1") == torch.device("cuda", 1)


@pytest.mark.parametrize("name", ["mps", "gpu", "", "cuda:x"])
def test_others_are_unknown(name: str) -> None:
    with pytest.raises(ValueError, match="device is auto, cpu, cuda or cuda:N, not "):
        pick_device(name)


def test_auto_is_the_16_bits_that_the_device_has(monkeypatch: pytest.MonkeyPatch) -> None:
    assert pick_dtype("auto", CPU) == "bfloat16"
    for has_them, expected in ((True, "bfloat16"), (False, "float16")):
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda has_them=has_them: has_them)
        assert pick_dtype("auto", torch.device("cuda")) == expected


def test_a_dtype_by_name() -> None:
    assert pick_dtype("float32", CPU) == "float32"
    with pytest.raises(ValueError, match="dtype is auto, float32, bfloat16 or float16, not 'float64'"):
        pick_dtype("float64", CPU)
