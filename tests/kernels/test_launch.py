"""Where an op runs, how a kernel is started, and into what its work is cut."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from stratakv.kernels import launch as start
from stratakv.kernels.launch import block_of, cdiv, jit, launch, num_splits, reaches_from, uses_triton

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)


class Kernel:
    """Keeps what it was started with."""

    def __init__(self) -> None:
        self.started: list[tuple[Any, ...]] = []

    def __getitem__(self, grid: tuple[int, ...]) -> Any:
        return lambda *args, **options: self.started.append((grid, args, options))


def test_a_kernel_is_started_on_its_grid() -> None:
    kernel, x = Kernel(), torch.zeros(3)
    launch(kernel, (2, 5), x, 7, BLOCK=16)
    launch(kernel, (1,), x, enable_fp_fusion=False)
    assert kernel.started == [
        ((2, 5), (x, 7), {"enable_fp_fusion": True, "BLOCK": 16}),
        ((1,), (x,), {"enable_fp_fusion": False}),
    ]


@pytest.mark.parametrize("grid", [(0,), (4, 0), (0, 4)])
def test_an_empty_grid_starts_nothing(grid: tuple[int, ...]) -> None:
    kernel = Kernel()
    launch(kernel, grid, torch.zeros(0))
    assert kernel.started == []


def on_cuda() -> Any:
    """What is asked of a tensor before a kernel is chosen, also where there is no device."""
    return SimpleNamespace(is_cuda=True, device=CUDA)


def test_triton_runs_where_all_tensors_are_on_a_device_that_it_compiles_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(start, "triton", object())
    monkeypatch.setattr(start, "_is_compiled_for", lambda device: True)
    assert uses_triton(on_cuda(), None, on_cuda())
    assert not uses_triton(on_cuda(), torch.zeros(2))
    monkeypatch.setattr(start, "_is_compiled_for", lambda device: False)
    assert not uses_triton(on_cuda())


def test_a_kernel_reaches_its_device_and_pinned_memory_of_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    pinned = SimpleNamespace(device=CPU, is_pinned=lambda: True)
    monkeypatch.setattr(start, "triton", object())
    monkeypatch.setattr(start, "_is_compiled_for", lambda device: True)
    assert reaches_from(CUDA, on_cuda(), pinned)
    assert not reaches_from(CUDA, on_cuda(), torch.zeros(2))
    assert not reaches_from(CUDA, SimpleNamespace(device=torch.device("cuda", 1)))
    assert not reaches_from(CPU, torch.zeros(2)), "no kernel runs on a host"
    monkeypatch.setattr(start, "_is_compiled_for", lambda device: False)
    assert not reaches_from(CUDA, on_cuda())


def test_without_triton_a_kernel_is_a_function_that_nobody_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(start, "triton", None)
    monkeypatch.setattr(start, "_is_compiled_for", lambda device: True)
    assert jit(on_cuda) is on_cuda
    assert not uses_triton(on_cuda())
    assert not reaches_from(CUDA, on_cuda())


@pytest.mark.parametrize(("count", "size", "blocks"), [(0, 4, 0), (1, 4, 1), (4, 4, 1), (5, 4, 2)])
def test_blocks_hold_all(count: int, size: int, blocks: int) -> None:
    assert cdiv(count, size) == blocks


@pytest.mark.parametrize(
    ("count", "least", "size"), [(0, 1, 1), (1, 1, 1), (2, 1, 2), (3, 1, 4), (64, 1, 64), (65, 1, 128), (3, 16, 16)]
)
def test_a_block_is_the_next_power_of_two(count: int, least: int, size: int) -> None:
    assert block_of(count, least) == size


@pytest.mark.parametrize(
    ("rows", "blocks", "splits"),
    [(8, 1000, 25), (7, 1000, 29), (8, 10, 10), (1, 1000, 128), (500, 1000, 1), (0, 1000, 128), (8, 0, 1)],
)
def test_rows_are_cut_until_they_fill_a_device(
    monkeypatch: pytest.MonkeyPatch, rows: int, blocks: int, splits: int
) -> None:
    """Two programs for each of 100 multiprocessors; never more than there are blocks, nor than 128, nor none."""
    monkeypatch.setattr(start, "_multiprocessors", lambda device: 100)
    assert num_splits(rows, blocks, CPU) == splits
