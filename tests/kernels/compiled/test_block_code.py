"""What stands in a block, as gguf has it: every number, every scale. Instructions that not every machine has leave what
those leave that it has."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

pytest.importorskip("numba")

from block_rows import KINDS, NAMES, WAYS, Array, allowed_of, draw_rows, numbers_of, product_of, vectors_of_steps
from gguf import GGMLQuantizationType
from gguf.constants import GGML_QUANT_SIZES
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic

from stratakv.kernels.compiled import record
from stratakv.kernels.compiled.block_code import BLOCK_BYTES, BLOCK_NUMBERS, Code, added_pairs, widened_by_bits
from stratakv.kernels.compiled.blocks import row_bytes


@pytest.mark.parametrize("name", NAMES[1:])
def test_a_block_has_the_size_that_gguf_says(name: str) -> None:
    kind = getattr(record, name)
    assert GGML_QUANT_SIZES[GGMLQuantizationType[name]] == (BLOCK_NUMBERS[kind], BLOCK_BYTES[kind])
    assert row_bytes(kind, 1536) == 1536 // BLOCK_NUMBERS[kind] * BLOCK_BYTES[kind]


@KINDS
@WAYS
def test_each_number_meets_its_own_x(name: str, rounded: bool) -> None:
    rng = np.random.default_rng(1)
    columns = 2 * BLOCK_NUMBERS[getattr(record, name)]
    weight = draw_rows(rng, name, 3, columns)
    expanded = numbers_of(name, weight)
    ours = product_of(name, weight, np.eye(columns, dtype=np.float32), rounded=rounded)
    assert (abs(ours - expanded.T) <= allowed_of(expanded, np.eye(columns))).all()


@KINDS
@WAYS
def test_scales_as_small_and_as_large_as_fp16_has_them(name: str, rounded: bool) -> None:
    rng = np.random.default_rng(3)
    columns = 2 * BLOCK_NUMBERS[getattr(record, name)]
    x = vectors_of_steps(rng, 2, columns)
    for sizes in ([6e-8, -6e-8, 6e-5, 6.2e-5], [0.0, -0.0, 1e-3], [65504, -65504]):
        weight = draw_rows(rng, name, 7, columns, np.array(sizes))
        expanded = numbers_of(name, weight)
        difference = abs(product_of(name, weight, x, rounded=rounded) - x.astype(np.float64) @ expanded.T)
        assert (difference <= allowed_of(expanded, x)).all()


@intrinsic
def _widened(context: Any, half: Any) -> Any:
    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        first = ir.Constant(ir.IntType(32), 0)
        one = builder.insert_element(ir.Constant(ir.VectorType(ir.IntType(16), 1), None), args[0], first)
        return builder.extract_element(widened_by_bits(builder, one), first)

    return types.float32(types.uint16), emit


@njit
def _all_widened(halves: Array, out: Array) -> None:
    for i in range(halves.shape[0]):
        out[i] = _widened(halves[i])


def test_every_fp16_without_an_instruction_for_it() -> None:
    halves, out = np.arange(65536, dtype=np.uint16), np.empty(65536, np.float32)
    _all_widened(halves, out)
    np.testing.assert_array_equal(out, halves.view(np.float16).astype(np.float32))


@intrinsic
def _pairs(context: Any, a: Any, b: Any, out: Any, on_any: Any) -> Any:
    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        code, of = Code(context, builder), ir.VectorType(ir.IntType(16), 16)
        left, right = (code.load(of, address) for address in args[:2])
        code.store(code.pair_products(left, right), args[2])
        code.store(added_pairs(builder, left, right), args[3])
        return context.get_dummy_value()

    return types.void(*[types.int64] * 4), emit


@njit
def _both_pairs(a: int, b: int, out: int, on_any: int) -> None:
    _pairs(a, b, out, on_any)


def test_pairs_of_products_on_any_machine_and_on_this_one() -> None:
    rng = np.random.default_rng(8)
    a, b = (rng.integers(-32767, 32768, 16).astype(np.int16) for _ in "ab")
    found = np.zeros((2, 8), np.int32)
    _both_pairs(a.ctypes.data, b.ctypes.data, found[0].ctypes.data, found[1].ctypes.data)
    expected = (a.astype(np.int32) * b).reshape(8, 2).sum(1)
    np.testing.assert_array_equal(found, [expected, expected])
