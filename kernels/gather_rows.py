"""Gather rows of a table, also of one in host memory, into memory on the device.

Shapes  source [N, W]   rows int [m]   out [m, W] of the source's dtype, written: out_i = source_rows[i]
        A ragged batch is one list of rows.
Host    Where the source is pinned, the kernel reads it in place over the bus: no staging buffer, no pass of the CPU, no
        waiting, and only the rows that are wanted are moved. All of the source must be pinned (`Tensor.is_pinned` looks
        at its first byte) and stay as it is until the stream has passed the call.
Triton  for that only: between tensors of one device PyTorch's `index_select` is such a kernel
Trust   rows are in range: not checked, which would wait for the device
Callers none yet: for decode that stays on the GPU
"""

from __future__ import annotations

import torch
from torch import Tensor

from .launch import block_of, cdiv, jit, launch, reaches_from, tl

_BLOCK_WORDS = 1024
"""Words of 4 bytes that a program copies: 8 for each thread, two loads of 16 bytes."""


def gather_rows_reference(source: Tensor, rows: Tensor, out: Tensor) -> None:
    """PyTorch's, through a copy on the source's device if the result lies on another."""
    rows = rows.to(source.device)
    if source.device == out.device:
        torch.index_select(source, 0, rows, out=out)
    else:
        out.copy_(source.index_select(0, rows))


@jit
def _gather_rows_kernel(
    out: tl.tensor, source: tl.tensor, rows: tl.tensor, count: tl.tensor, width: tl.tensor, source_stride: tl.tensor,
    BLOCK_M: tl.constexpr, BLOCK_W: tl.constexpr,
) -> None:  # fmt: skip
    """Neighbouring threads read neighbouring words: whole packets of the bus."""
    o_m = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M).to(tl.int64)
    o_w = tl.program_id(1) * BLOCK_W + tl.arange(0, BLOCK_W)
    m_m = o_m < count
    b_row = tl.load(rows + o_m, mask=m_m, other=0).to(tl.int64)
    m_w = m_m[:, None] & (o_w < width)[None, :]
    b_words = tl.load(source + b_row[:, None] * source_stride + o_w[None, :], mask=m_w, other=0)
    tl.store(out + o_m[:, None] * width + o_w[None, :], b_words, mask=m_w)


def gather_rows_triton(source: Tensor, rows: Tensor, out: Tensor) -> None:
    """As words of 4 bytes where rows are made of such, else byte by byte."""
    row_bytes = source.shape[1] * source.itemsize
    fits = row_bytes % 4 == 0 and source.stride(0) * source.itemsize % 4 == 0
    word = torch.int32 if fits and source.data_ptr() % 4 == 0 and out.data_ptr() % 4 == 0 else torch.uint8
    source, out = source.view(torch.uint8).view(word), out.view(torch.uint8).view(word)
    width = source.shape[1]
    block = min(_BLOCK_WORDS, block_of(width))
    at_once = _BLOCK_WORDS // block
    launch(
        _gather_rows_kernel, (cdiv(len(rows), at_once), cdiv(width, block)), out, source, rows, len(rows), width,
        source.stride(0), BLOCK_M=at_once, BLOCK_W=block, num_warps=4,
    )  # fmt: skip


def gather_rows(source: Tensor, rows: Tensor, out: Tensor) -> None:
    """Rows of the source may lie apart. Raises ValueError on shapes or memory that do not fit the contract."""
    if rows.dim() != 1 or out.shape != (len(rows), source.shape[1]) or out.dtype != source.dtype:
        raise ValueError(
            f"source {list(source.shape)} {source.dtype}, rows {list(rows.shape)}, out {list(out.shape)} {out.dtype}: "
            "expected [N, W], [m], [m, W] of one dtype"
        )
    if not out.is_contiguous() or not rows.is_contiguous() or (source.shape[1] > 1 and source.stride(1) != 1):
        raise ValueError("out and rows are contiguous, and so is each row of source")
    zero_copy = source.device != out.device and reaches_from(out.device, source, rows)
    (gather_rows_triton if zero_copy else gather_rows_reference)(source, rows, out)
