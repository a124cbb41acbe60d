"""SimHash: codes that two vectors share with a probability that depends on their angle alone.

Shapes  normals [bits, tables, D]   x [..., n, D]  ->  codes [..., tables, n] int16, first plane in the highest bit
        cosine [...]  ->  probability [...] fp32
Formula code_t(x) = sum_i 2^(bits-1-i) [normals[i, t] . x > 0]
        one table agrees with P = (1 - arccos(cosine) / pi)^bits, at least two of them with
        u = 1 - (1 - P)^tables - tables P (1 - P)^(tables - 1)
Dtypes  fp16/bf16/fp32 in; normals and the rounded x hold whole numbers so small that every product and every
        partial sum is exact in fp32: a code does not depend on how many vectors are hashed together, on
        threads or on the device
Papers  Charikar, STOC 2002; MagicPIG (arXiv 2410.16179)
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from .launch import block_of, cdiv, jit, launch, tl, uses_triton

_STEPS = 8
"""Whole numbers per standard deviation of a normal's components. A Gaussian rounded this finely keeps its moments
except for the variance, which grows equally in every direction."""
_EXACT = 2**24
"""Whole numbers up to this one are exact in fp32."""
_BLOCK = 256
"""Vectors hashed at a time: their projections then stay in the cache."""


class Planes(NamedTuple):
    """Random hyperplanes through the origin."""

    normals: Tensor
    """fp32 `[bits, tables, D]`, whole numbers."""
    reach: float
    """The largest component that a hashed vector may have, a power of two."""

    def to(self, device: torch.device) -> Planes:
        return Planes(self.normals.to(device), self.reach)


def random_planes(dim: int, bits: int, tables: int, seed: int) -> Planes:
    """Draw normals iid N(0, 1), rounded to multiples of 1/8 and stored in units of that."""
    generator = torch.Generator().manual_seed(seed)
    normals = torch.randn(bits, tables, dim, dtype=torch.float32, generator=generator).mul_(_STEPS).round_()
    longest = max(float(normals.abs().sum(-1).max()), 1.0)
    return Planes(normals, 2.0 ** math.floor(math.log2(_EXACT / longest)))


def rounded(x: Tensor, planes: Planes) -> Tensor:
    """`x` scaled and rounded to whole numbers, its largest component `planes.reach` (2^14 at D = 64, 2^12 at D = 512):
    fp32.

    Rounding turns `x` by an angle of less than 1e-3.
    """
    values = x.float()
    largest = values.abs().amax(-1, keepdim=True).clamp(min=torch.finfo(torch.float32).tiny)
    return (values / largest * planes.reach).round()


def simhash_reference(x: Tensor, planes: Planes) -> Tensor:
    """The formula in float64, of the rounded vectors."""
    signs = torch.einsum("btd,...nd->...btn", planes.normals.double(), rounded(x, planes).double()) > 0
    powers = 2 ** torch.arange(len(planes.normals) - 1, -1, -1, device=x.device)
    return (signs * powers.view(-1, 1, 1)).sum(-3).to(torch.int16)


def simhash(x: Tensor, planes: Planes) -> Tensor:
    """Hash `x` by at most 15 bits."""
    return (simhash_triton if uses_triton(x, planes.normals) else _simhash_torch)(x, planes)


def _simhash_torch(x: Tensor, planes: Planes) -> Tensor:
    """The codes in fp32, block by block; a second product puts their bits together."""
    bits, tables = planes.normals.shape[:2]
    normals, whole = planes.normals.flatten(0, 1), rounded(x, planes).transpose(-1, -2)
    powers = 2.0 ** torch.arange(bits - 1, -1, -1, dtype=torch.float32, device=x.device)
    codes = torch.empty(*x.shape[:-2], tables, x.shape[-2], dtype=torch.int16, device=x.device)
    for begin in range(0, x.shape[-2], _BLOCK):
        some = codes[..., begin : begin + _BLOCK]
        signs = (normals @ whole[..., begin : begin + _BLOCK] > 0).to(torch.float32)
        some.copy_((powers @ signs.view(*x.shape[:-2], bits, -1)).view(some.shape))
    return codes


@jit
def _simhash_kernel(
    x: tl.tensor, normals: tl.tensor, codes: tl.tensor, count: tl.tensor, tables: tl.tensor,
    BITS: tl.constexpr, DIM: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
) -> None:  # fmt: skip
    """Codes a block of vectors in a block of tables, bit by bit in registers; projections are never written."""
    i_n, i_t, i_x = tl.program_id(0), tl.program_id(1), tl.program_id(2).to(tl.int64)
    o_n, o_t = i_n * BLOCK_N + tl.arange(0, BLOCK_N), i_t * BLOCK_T + tl.arange(0, BLOCK_T)
    m_n, m_t = o_n < count, o_t < tables
    b_code = tl.zeros([BLOCK_T, BLOCK_N], dtype=tl.int32)
    for i_b in range(BITS):
        b_s = tl.zeros([BLOCK_T, BLOCK_N], dtype=tl.float32)
        for i_d in range(0, DIM, BLOCK_D):
            o_d = i_d + tl.arange(0, BLOCK_D)
            m_d = (o_d < DIM)[None, :]
            p_w = normals + (i_b * tables + o_t)[:, None] * DIM + o_d[None, :]
            b_w = tl.load(p_w, mask=m_t[:, None] & m_d, other=0.0)  # [BLOCK_T, BLOCK_D]
            p_x = x + (i_x * count + o_n)[:, None] * DIM + o_d[None, :]
            b_x = tl.load(p_x, mask=m_n[:, None] & m_d, other=0.0)  # [BLOCK_N, BLOCK_D]
            b_s += tl.dot(b_w, tl.trans(b_x), input_precision="ieee")
        b_code = b_code * 2 + (b_s > 0).to(tl.int32)
    p_c = codes + (i_x * tables + o_t)[:, None] * count + o_n[None, :]
    tl.store(p_c, b_code.to(tl.int16), mask=m_t[:, None] & m_n[None, :])


def simhash_triton(x: Tensor, planes: Planes) -> Tensor:
    """The codes by Triton in full fp32, where every sum is exact: tensor cores take no whole numbers of 15 bits."""
    (bits, tables, dim), count = planes.normals.shape, x.shape[-2]
    whole = rounded(x, planes).contiguous()
    codes = torch.empty(*x.shape[:-2], tables, count, dtype=torch.int16, device=x.device)
    grid = cdiv(count, 64), cdiv(tables, 32), math.prod(x.shape[:-2])
    launch(
        _simhash_kernel, grid, whole, planes.normals, codes, count, tables,
        BITS=bits, DIM=dim, BLOCK_T=32, BLOCK_N=64, BLOCK_D=min(32, block_of(dim, 16)), num_warps=4, num_stages=2,
    )  # fmt: skip
    return codes


def inclusion_probability_reference(cosine: Tensor, bits: int | Tensor, tables: int | Tensor) -> Tensor:
    """The formula as it is written; in fp32, cancellation makes it useless from P = 1e-4 down."""
    one = (1 - torch.arccos(cosine.clamp(-1, 1)) / math.pi) ** bits
    return 1 - (1 - one) ** tables - tables * one * (1 - one) ** (tables - 1)


def inclusion_probability(cosine: Tensor, bits: int | Tensor, tables: int | Tensor) -> Tensor:
    """The probability u in logarithms: off by at most 2^-21 / ((tables - 1) P) + 5e-6 of itself, 0.3 % at P = 1e-6 and
    150 tables.

    `bits` and `tables` may be tensors that broadcast against `cosine`. Cosines beyond 1 by rounding are clamped.
    """
    angle = torch.arccos(cosine.float().clamp(-1, 1))
    one = ((1 - angle / math.pi) ** bits).clamp(max=1 - 2**-24)
    others = tables - 1
    return -torch.expm1(others * torch.log1p(-one) + torch.log1p(others * one))
