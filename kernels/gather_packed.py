"""Gather parts of pages that are kept as int8 or int4, and restore their numbers on the way.

Shapes  payloads uint8 [S, B], a page each as `storage/codecs/grouped.py` encodes it   rows int [m]
        out [m, unit*D], D even, written: `unit` tokens of one KV head, keys or values
Rows    slot * parts + part, part = (head * 2 + side) * (L / unit) + unit within the page, side 0 keys and 1 values
Bytes   fp16 scales and minima of keys [G, D, a], then of values [G, L, b]; codes of keys, then of values [G, L, D], a
        byte each, or two to a byte, the first one low. a and b groups of equal width share tokens and channels.
Formula number = code * scale + minimum in fp32, rounded once to out's dtype: the very bits that the codec gives
Host    Payloads may lie in pinned host memory, as the source of `gather_rows` may: then half or a quarter of the bytes
        cross the bus. Rows are in range: not checked, which would wait for the device.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .launch import block_of, cdiv, jit, launch, reaches_from, tl

_TOKENS, _CHANNELS = 32, 64
"""Most tokens of a key's channel, and most channels of a token's value, that share a scale."""
_BLOCK = 1024


class Packing(NamedTuple):
    """How a page lies in its payload."""

    heads: int
    tokens: int
    channels: int
    bits: int
    """4 or 8."""

    @property
    def key_groups(self) -> int:
        return cdiv(self.tokens, _TOKENS)

    @property
    def value_groups(self) -> int:
        return cdiv(self.channels, _CHANNELS)

    @property
    def key_scales(self) -> int:
        return self.heads * self.channels * self.key_groups

    @property
    def value_scales(self) -> int:
        return self.heads * self.tokens * self.value_groups

    @property
    def payload_bytes(self) -> int:
        codes = 2 * self.heads * self.tokens * self.channels
        return 4 * (self.key_scales + self.value_scales) + codes * self.bits // 8


def gather_packed_reference(payloads: Tensor, rows: Tensor, packing: Packing, out: Tensor) -> None:
    """The formula, number by number."""
    heads, tokens, channels, bits = packing
    unit = out.shape[1] // channels
    per_run = tokens // unit
    slot, part = rows // (heads * 2 * per_run), rows % (heads * 2 * per_run)
    head, side = (part // (2 * per_run)).view(-1, 1, 1), (part // per_run % 2).view(-1, 1, 1)
    token = (part % per_run * unit).view(-1, 1, 1) + torch.arange(unit, device=rows.device).view(1, -1, 1)
    channel = torch.arange(channels, device=rows.device).view(1, 1, -1)
    of_key = (head * channels + channel) * packing.key_groups + token // cdiv(tokens, packing.key_groups)
    of_value = (head * tokens + token) * packing.value_groups + channel // cdiv(channels, packing.value_groups)
    scale_at = torch.where(side == 0, of_key, 2 * packing.key_scales + of_value)
    least_at = scale_at + torch.where(side == 0, packing.key_scales, packing.value_scales)
    code_at = ((side * heads + head) * tokens + token) * channels + channel
    held = payloads.view(torch.float16)
    slot = slot.view(-1, 1, 1)
    byte = payloads[slot, 4 * (packing.key_scales + packing.value_scales) + code_at * bits // 8].int()
    code = byte if bits == 8 else byte >> code_at % 2 * 4 & 15
    out.copy_((code.float() * held[slot, scale_at].float() + held[slot, least_at].float()).flatten(1))


@jit
def _gather_packed_kernel(
    out: tl.tensor, payloads: tl.tensor, halves: tl.tensor, rows: tl.tensor, stride: tl.tensor,
    HEADS: tl.constexpr, TOKENS: tl.constexpr, CHANNELS: tl.constexpr, BITS: tl.constexpr, UNIT: tl.constexpr,
    KEY_GROUPS: tl.constexpr, KEY_WIDTH: tl.constexpr, KEY_SCALES: tl.constexpr,
    VALUE_GROUPS: tl.constexpr, VALUE_WIDTH: tl.constexpr, VALUE_SCALES: tl.constexpr, BLOCK: tl.constexpr,
) -> None:  # fmt: skip
    """A block of one row; its page, head and side are the same for all numbers."""
    i_m = tl.program_id(0).to(tl.int64)
    o_w = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    m_w = o_w < UNIT * CHANNELS
    row = tl.load(rows + i_m).to(tl.int64)
    PER_RUN: tl.constexpr = TOKENS // UNIT
    slot, part = row // (HEADS * 2 * PER_RUN), row % (HEADS * 2 * PER_RUN)
    head, side = part // (2 * PER_RUN), part // PER_RUN % 2
    token, channel = part % PER_RUN * UNIT + o_w // CHANNELS, o_w % CHANNELS
    of_key = (head * CHANNELS + channel) * KEY_GROUPS + token // KEY_WIDTH
    of_value = 2 * KEY_SCALES + (head * TOKENS + token) * VALUE_GROUPS + channel // VALUE_WIDTH
    p_scale = halves + slot * (stride // 2) + tl.where(side == 0, of_key, of_value)
    b_scale = tl.load(p_scale, mask=m_w, other=0.0).to(tl.float32)
    b_least = tl.load(p_scale + tl.where(side == 0, KEY_SCALES, VALUE_SCALES), mask=m_w, other=0.0).to(tl.float32)
    first = ((side * HEADS + head) * TOKENS + part % PER_RUN * UNIT) * CHANNELS
    p_code = payloads + slot * stride + 4 * (KEY_SCALES + VALUE_SCALES)
    if BITS == 4:  # whole words of codes, two to a byte, come from memory
        o_p = tl.program_id(1) * (BLOCK // 2) + tl.arange(0, BLOCK // 2)
        b_pair = tl.load(p_code + first // 2 + o_p, mask=o_p < UNIT * CHANNELS // 2, other=0)
        b_code = tl.interleave(b_pair & 15, b_pair >> 4)
    else:
        b_code = tl.load(p_code + first + o_w, mask=m_w, other=0)
    b_number = b_code.to(tl.float32) * b_scale + b_least
    tl.store(out + i_m * (UNIT * CHANNELS) + o_w, b_number.to(out.dtype.element_ty), mask=m_w)


def gather_packed_triton(payloads: Tensor, rows: Tensor, packing: Packing, out: Tensor) -> None:
    """Without fused multiply-add, which would round once where the codec rounds twice."""
    heads, tokens, channels, bits = packing
    width = out.shape[1]
    block = min(_BLOCK, block_of(width))
    launch(
        _gather_packed_kernel, (len(rows), cdiv(width, block)), out, payloads, payloads.view(torch.float16), rows,
        payloads.stride(0), HEADS=heads, TOKENS=tokens, CHANNELS=channels, BITS=bits, UNIT=width // channels,
        KEY_GROUPS=packing.key_groups, KEY_WIDTH=cdiv(tokens, packing.key_groups), KEY_SCALES=packing.key_scales,
        VALUE_GROUPS=packing.value_groups, VALUE_WIDTH=cdiv(channels, packing.value_groups),
        VALUE_SCALES=packing.value_scales, BLOCK=block, num_warps=4, enable_fp_fusion=False,
    )  # fmt: skip


def gather_packed(payloads: Tensor, rows: Tensor, packing: Packing, out: Tensor) -> None:
    """Slots may be longer than a payload. Raises ValueError on shapes or memory that do not fit the contract."""
    _, tokens, channels, bits = packing
    if bits not in (4, 8) or channels % 2:
        raise ValueError(f"bits is 4 or 8 and channels are even, not {bits} and {channels}")
    if payloads.dtype != torch.uint8 or payloads.shape[1] < packing.payload_bytes or payloads.shape[1] % 2:
        raise ValueError(
            f"payloads {list(payloads.shape)} {payloads.dtype}: expected uint8 [S, B], B even and at least "
            f"{packing.payload_bytes} for {packing}"
        )
    unit, rest = divmod(out.shape[1], channels)
    if out.shape[0] != len(rows) or rest or unit < 1 or tokens % unit:
        raise ValueError(
            f"out {list(out.shape)}: expected [{len(rows)}, unit * {channels}], unit a divisor of {tokens} tokens"
        )
    if not (payloads.is_contiguous() and rows.is_contiguous() and out.is_contiguous()):
        raise ValueError("payloads, rows and out are contiguous")
    if reaches_from(out.device, payloads, rows):
        gather_packed_triton(payloads, rows, packing, out)
    elif payloads.device == out.device:
        gather_packed_reference(payloads, rows.to(out.device), packing, out)
    else:
        found = torch.empty(out.shape, dtype=out.dtype, device=payloads.device)
        gather_packed_reference(payloads, rows.to(payloads.device), packing, found)
        out.copy_(found)
