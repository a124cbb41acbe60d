"""What compiled loops need and numba has no word for: addresses as arrays, 16-bit floats, atomic counters, sleeping.

Everything here is an instruction or two once it is compiled, and is called from compiled functions only. Memory belongs
to whoever made the address; nothing is checked.
"""

from __future__ import annotations

import platform
import sys
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
from llvmlite import ir
from numba import carray, float32, int32, int64, njit, types
from numba.core import cgutils
from numba.extending import intrinsic

FAST = {"reassoc", "nsz", "contract", "arcp"}
"""Sums may be reordered, or nothing is vectorised. NaN and infinity keep their meaning."""

_I8, _I32, _I64, _F32 = ir.IntType(8), ir.IntType(32), ir.IntType(64), ir.FloatType()
Loop = TypeVar("Loop", bound=Callable[..., Any])


def loop(function: Loop) -> Loop:
    """A function of compiled code: without checks of bounds and divisors, and without Python's lock.

    It is a part of whatever calls it, always. Where LLVM leaves a call, the process that compiles calls another copy,
    which was optimised by itself, than processes that find the code kept: their sums differ in the last bits.
    """
    options = {"no_cpython_wrapper": True, "no_cfunc_wrapper": True, "forceinline": True}
    compiled: Loop = njit(fastmath=FAST, error_model="numpy", nogil=True, **options)(function)
    return compiled


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


@loop
def floats(address: int, shape: Any) -> Any:
    """The fp32 array of that shape at an address."""
    return carray(_pointer(address), shape, np.float32)


@loop
def halves(address: int, shape: Any) -> Any:
    """The array of 16-bit numbers, uint16, at an address."""
    return carray(_pointer(address), shape, np.uint16)


@loop
def shorts(address: int, shape: Any) -> Any:
    """The array of int16 at an address."""
    return carray(_pointer(address), shape, np.int16)


@loop
def octets(address: int, shape: Any) -> Any:
    """The array of uint8 at an address."""
    return carray(_pointer(address), shape, np.uint8)


@loop
def signed_octets(address: int, shape: Any) -> Any:
    """The array of int8 at an address."""
    return carray(_pointer(address), shape, np.int8)


@loop
def wholes(address: int, shape: Any) -> Any:
    """The array of int32 at an address."""
    return carray(_pointer(address), shape, np.int32)


@loop
def longs(address: int, shape: Any) -> Any:
    """The array of int64 at an address."""
    return carray(_pointer(address), shape, np.int64)


@loop
def narrow(x: Any) -> Any:
    """fp32 to bf16, held as uint16, to the nearest and of two to the even one, as torch does."""
    bits = as_int(float32(x))
    if x != x:
        return np.uint16(0x7FC0)
    rounded = int64(bits) + 0x7FFF + ((bits >> 16) & 1)
    return np.uint16((rounded >> 16) & 0xFFFF)


@loop
def widen_half(half: Any) -> Any:
    """fp16, held as uint16, to fp32; no subnormal fp32 number is met on the way."""
    size, sign = int32(half & 0x7FFF) << int32(13), int32(half >> 15) << int32(31)
    bits = size + int32(112 << 23)
    if size < int32(1 << 23):
        bits = as_int(as_float(size + int32(113 << 23)) - float32(2.0**-14))
    elif size >= int32(31 << 23):  # infinity, and what is no number
        bits = size + int32(224 << 23)
    return as_float(int32(bits | sign))


@loop
def exp(x: Any) -> Any:
    """e to the power of x, fp32, to two units in the last place; LLVM vectorises it, and not the C library's. Below -87
    it is 0, beyond 88.3 no more than there."""
    x = float32(-87.5) if x < float32(-87.5) else float32(x)
    x = float32(88.3) if x > float32(88.3) else x
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
    return scaled if x > float32(-87.0) else (x if x != x else float32(0))


@intrinsic
def call(context: Any, function: Any, row: Any, item: Any, scratch: Any) -> Any:
    """Call an operation on an item by its address."""

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        kind = ir.FunctionType(ir.VoidType(), [_I64] * 3)
        builder.call(builder.inttoptr(args[0], kind.as_pointer()), args[1:])
        return context.get_dummy_value()

    return types.void(*[types.int64] * 4), emit


@intrinsic
def call_alone(context: Any, function: Any, row: Any, scratch: Any) -> Any:
    """Call a preparation by its address."""

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        kind = ir.FunctionType(ir.VoidType(), [_I64] * 2)
        builder.call(builder.inttoptr(args[0], kind.as_pointer()), args[1:])
        return context.get_dummy_value()

    return types.void(*[types.int64] * 3), emit


# Threads


@intrinsic
def atomic_add(context: Any, address: Any, value: Any) -> Any:
    """Add to the int64 at an address and return what was there before. All threads see such steps in one order."""

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.atomic_rmw("add", builder.inttoptr(args[0], _I64.as_pointer()), args[1], "seq_cst")

    return types.int64(types.int64, types.int64), emit


@intrinsic
def atomic_load(context: Any, address: Any) -> Any:
    """The int64 at an address; what its writer had written before is then seen as well."""

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.load_atomic(builder.inttoptr(args[0], _I64.as_pointer()), "seq_cst", 8)

    return types.int64(types.int64), emit


@intrinsic
def ticks(context: Any) -> Any:
    """A counter that goes up steadily, in a unit of the processor's own."""

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.call(cgutils.get_or_insert_function(
            builder.module, ir.FunctionType(_I64, []), "llvm.readcyclecounter"
        ), [])  # fmt: skip

    return types.int64(), emit


LINE = 64
"""Bytes that come from memory at a time."""


@intrinsic
def fetch(context: Any, address: Any) -> Any:
    """Have the line at an address brought into caches; it will soon be read. The address need not be anybody's."""

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        pointer = builder.inttoptr(args[0], _I8.as_pointer())
        of = ir.FunctionType(ir.VoidType(), [_I8.as_pointer(), _I32, _I32, _I32])
        call = cgutils.get_or_insert_function(builder.module, of, "llvm.prefetch.p0")
        builder.call(call, [pointer, ir.Constant(_I32, 0), ir.Constant(_I32, 3), ir.Constant(_I32, 1)])
        return context.get_dummy_value()

    return types.void(types.int64), emit


_AHEAD = 4096
"""Bytes between what is multiplied and what is fetched: what the processor fetches by itself ends with each small page
of memory."""


@loop
def fetch_ahead(address: int, size: int) -> None:
    """While `size` bytes of a long run are read, have as many further on brought into caches."""
    for at in range(address + _AHEAD, address + _AHEAD + size, LINE):
        fetch(at)


_X86, _ARM = platform.machine() in ("x86_64", "AMD64"), platform.machine() in ("aarch64", "arm64")


@intrinsic
def pause(context: Any) -> Any:
    """Tell the processor that this thread is waiting in a loop."""

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        void, find = ir.VoidType(), cgutils.get_or_insert_function
        if _X86:
            builder.call(find(builder.module, ir.FunctionType(void, []), "llvm.x86.sse2.pause"), [])
        elif _ARM:
            hint = find(builder.module, ir.FunctionType(void, [_I32]), "llvm.aarch64.hint")
            builder.call(hint, [ir.Constant(_I32, 1)])
        return context.get_dummy_value()

    return types.void(), emit


_FUTEX = {"x86_64": 202, "aarch64": 98}.get(platform.machine(), 0) if sys.platform == "linux" else 0
"""Number of the system call; 0: there is none, and who waits gives its turn away again and again."""
_WAIT, _WAKE = 128, 129
_LONG = types.int64
if _FUTEX:
    _call = types.ExternalFunction("syscall", _LONG(*[_LONG] * 7))

    @loop
    def sleep(address: int, value: int) -> None:
        """Sleep until `wake` is called for the int64 at an address; not if its value is another one already."""
        _call(_FUTEX, address, _WAIT, value & 0xFFFFFFFF, 0, 0, 0)

    @loop
    def wake(address: int) -> None:
        """Wake all threads that sleep there."""
        _call(_FUTEX, address, _WAKE, 0x7FFFFFFF, 0, 0, 0)
else:
    _give = types.ExternalFunction("SwitchToThread" if sys.platform == "win32" else "sched_yield", types.int32())

    @loop
    def sleep(address: int, value: int) -> None:
        """Let other threads run for a moment."""
        _give()

    @loop
    def wake(address: int) -> None:
        """Nobody sleeps."""
