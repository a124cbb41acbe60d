"""What compiled loops need and numba has no word for: addresses as arrays, 16-bit floats, atomic counters, sleeping.

Everything here is an instruction or two once it is compiled, and is called from compiled functions only. Memory belongs
to whoever made the address; nothing is checked.
"""

from __future__ import annotations

import ctypes
import sys
from typing import Any

import numpy as np
from llvmlite import ir
from numba import carray, float32, int32, int64, njit, types
from numba.core import cgutils
from numba.extending import intrinsic

FAST = {"reassoc", "nsz", "contract", "arcp"}
"""Sums may be reordered, or nothing is vectorised. NaN and infinity keep their meaning."""

_I16, _I32, _I64, _F32 = ir.IntType(16), ir.IntType(32), ir.IntType(64), ir.FloatType()


@intrinsic
def widen(context: Any, value: Any) -> Any:
    """bf16, held as uint16, to fp32: a shift that LLVM vectorises."""

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        wide = builder.zext(args[0], _I32)
        return builder.bitcast(builder.shl(wide, ir.Constant(_I32, 16)), _F32)

    return types.float32(types.uint16), emit


@intrinsic
def as_int(context: Any, value: Any) -> Any:
    """The bits of an fp32 number, as int32."""

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.bitcast(args[0], _I32)

    return types.int32(types.float32), emit


@intrinsic
def as_float(context: Any, value: Any) -> Any:
    """The fp32 number of these bits, int32."""

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.bitcast(args[0], _F32)

    return types.float32(types.int32), emit


@intrinsic
def real(context: Any, value: Any) -> Any:
    """The fp64 number of these bits, int64: how a record of int64 holds a number."""

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.bitcast(args[0], ir.DoubleType())

    return types.float64(types.int64), emit


@intrinsic
def _pointer(context: Any, address: Any) -> Any:
    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.inttoptr(args[0], cgutils.voidptr_t)

    return types.voidptr(types.int64), emit


@njit(inline="always")
def floats(address, shape):
    """The fp32 array of that shape at an address."""
    return carray(_pointer(address), shape, np.float32)


@njit(inline="always")
def halves(address, shape):
    """The array of 16-bit numbers, uint16, at an address."""
    return carray(_pointer(address), shape, np.uint16)


@njit(inline="always")
def octets(address, shape):
    """The array of uint8 at an address."""
    return carray(_pointer(address), shape, np.uint8)


@njit(inline="always")
def signed_octets(address, shape):
    """The array of int8 at an address."""
    return carray(_pointer(address), shape, np.int8)


@njit(inline="always")
def wholes(address, shape):
    """The array of int32 at an address."""
    return carray(_pointer(address), shape, np.int32)


@njit(inline="always")
def longs(address, shape):
    """The array of int64 at an address."""
    return carray(_pointer(address), shape, np.int64)


@njit(inline="always")
def narrow(x):
    """fp32 to bf16, held as uint16, to the nearest and of two to the even one, as torch does."""
    bits = as_int(float32(x))
    if x != x:
        return np.uint16(0x7FC0)
    rounded = int64(bits) + 0x7FFF + ((bits >> 16) & 1)
    return np.uint16((rounded >> 16) & 0xFFFF)


@njit(fastmath=FAST, inline="always")
def exp(x):
    """e to the power of x, fp32, to two units in the last place for x <= 88; in loops that LLVM vectorises, which the
    C library's is not. Below -87 it is 0."""
    x = max(float32(x), float32(-87.5))
    n = np.floor(x * float32(1.4426950408889634) + float32(0.5))
    r = x - n * float32(0.693359375) + n * float32(2.12194440e-4)
    p = float32(1.9875691500e-4)
    p = p * r + float32(1.3981999507e-3)
    p = p * r + float32(8.3334519073e-3)
    p = p * r + float32(4.1665795894e-2)
    p = p * r + float32(1.6666665459e-1)
    p = p * r + float32(5.0000001201e-1)
    p = p * r * r + r + float32(1)
    scaled = p * as_float((int32(n) + int32(127)) << int32(23))
    return scaled if x > float32(-87.0) else float32(0)


# Threads


@intrinsic
def atomic_add(context: Any, address: Any, value: Any) -> Any:
    """Add to the int64 at an address and return what was there before, in one step of all threads. What this thread
    wrote before is seen by whoever sees the sum."""

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.atomic_rmw("add", builder.inttoptr(args[0], _I64.as_pointer()), args[1], "acq_rel")

    return types.int64(types.int64, types.int64), emit


@intrinsic
def atomic_load(context: Any, address: Any) -> Any:
    """The int64 at an address, with all that was written before it."""

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.load_atomic(builder.inttoptr(args[0], _I64.as_pointer()), "acquire", 8)

    return types.int64(types.int64), emit


@intrinsic
def atomic_store(context: Any, address: Any, value: Any) -> Any:
    """Store an int64 at an address, after all that was written before."""

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        builder.store_atomic(args[1], builder.inttoptr(args[0], _I64.as_pointer()), "release", 8)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64), emit
