"""The workspace takes the bytes that were counted for it, and gives views of the same memory."""

from __future__ import annotations

import pytest
import torch

from stratakv.runtime.layers.workspace import KEY_BLOCK, Workspace
from stratakv.storage import PageLayout

CPU = torch.device("cpu")


def layout(dtype: str = "bfloat16", page_size: int = 4) -> PageLayout:
    return PageLayout(num_heads=2, page_size=page_size, head_dim=8, dtype=dtype)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("page_size", [4, 600])
def test_it_takes_the_bytes_that_are_counted(dtype: str, page_size: int) -> None:
    """A page longer than what is fetched ahead has room there, too."""
    workspace = Workspace(layout(dtype, page_size), 40, CPU, num_past=3)
    assert workspace.past is not None
    held = [
        workspace.past.buffers,
        workspace.span,
        workspace._stage,
        workspace.ahead,
        *([workspace._wide] if workspace._wide is not None else []),
    ]
    assert sum(buffer.nbytes for buffer in held) == Workspace.bytes_for(layout(dtype, page_size), 40, 3)
    assert workspace.span.shape == (2, 2, 40 + page_size, 8)
    assert workspace.ahead.numel() >= 2 * 2 * page_size * 8


def test_a_stage_has_room_for_a_block_of_keys_and_overwrites_the_one_before() -> None:
    workspace = Workspace(layout(), 0, CPU)
    first = workspace.stage(2 * 2 * KEY_BLOCK // 4, 4 * 8)
    first.zero_()
    second = workspace.stage(3, 8)
    assert second.is_contiguous()
    second.fill_(1)
    assert first.sum() == second.numel()


def test_16_bit_rows_are_widened_into_memory_that_is_there() -> None:
    workspace = Workspace(layout(), 0, CPU)
    staged = workspace.stage(5, 8).copy_(torch.randn(5, 8))
    wide = workspace.widened(staged)
    assert wide.dtype == torch.float32
    assert torch.equal(wide, staged.float())
    assert workspace.widened(workspace.stage(2, 8)).data_ptr() == wide.data_ptr()


def test_fp32_rows_are_handed_on_as_they_are() -> None:
    workspace = Workspace(layout("float32"), 0, CPU)
    staged = workspace.stage(5, 8)
    assert workspace.widened(staged) is staged


def test_beside_a_device_there_is_a_second_one_for_attention_on_the_host() -> None:
    """The turn at the one is the turn at the other."""
    workspace = Workspace(layout(), 40, torch.device("meta"))
    assert workspace._wide is None
    host = workspace.on_host
    assert (host.span.device.type, host.span_tokens) == ("cpu", 0)
    assert host.turns is workspace.turns
    assert workspace.on_host is host
    assert host.on_host is host
