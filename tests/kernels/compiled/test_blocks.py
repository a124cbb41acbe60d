"""Products with blocks against gguf's own expansion of them, in fp64."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

pytest.importorskip("numba")

from gguf import GGMLQuantizationType, quants
from gguf.constants import GGML_QUANT_SIZES
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic

from stratakv.kernels.compiled import record
from stratakv.kernels.compiled.block_code import BLOCK_BYTES, BLOCK_NUMBERS, Code, added_pairs, widened_by_bits
from stratakv.kernels.compiled.blocks import call_rows, prepare, prepared_bytes, row_bytes, rows

Array = np.ndarray[Any, Any]

NAMES = ["I8", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q4_K", "Q5_K", "Q6_K"]
SCALES = {"Q4_1": (0, 2), "Q5_1": (0, 2), "Q4_K": (0, 2), "Q5_K": (0, 2), "Q6_K": (208,)}
"""Where the fp16 of a block stand; of the others at its beginning."""
KINDS = pytest.mark.parametrize("name", NAMES)
WAYS = pytest.mark.parametrize("rounded", [False, True])


@njit
def _product(
    address: int, way: int, weight: int, x: int, columns: int, batch: int, prepared: int, begin: int, end: int, y: int,
    stride: int,
) -> None:  # fmt: skip
    prepare(x, columns, batch, way, prepared)
    call_rows(address, weight, columns, prepared, batch, begin, end, y, stride)


def _drawn(rng: np.random.Generator, name: str, count: int, columns: int, sizes: Array | None = None) -> Array:
    """Rows of blocks with any bits, and scales of these sizes."""
    kind = getattr(record, name)
    weight = rng.integers(0, 256, (count, row_bytes(kind, columns)), dtype=np.uint8)
    if name == "I8":
        return weight
    blocks = weight.reshape(-1, BLOCK_BYTES[kind])
    for at in SCALES.get(name, (0,)):
        drawn = rng.standard_normal(len(blocks)) if sizes is None else rng.choice(sizes, len(blocks))
        blocks[:, at : at + 2] = drawn.astype(np.float16)[:, None].view(np.uint8)
    return weight


def _expanded(name: str, weight: Array) -> Array:
    if name == "I8":
        return weight.view(np.int8).astype(np.float64)
    return quants.dequantize(weight, GGMLQuantizationType[name]).astype(np.float64)


def _vectors(rng: np.random.Generator, batch: int, columns: int) -> Array:
    """Vectors that are whole steps of the largest of each 32 numbers, so that rounding changes nothing."""
    parts = rng.integers(-32767, 32768, (batch, columns // 32, 32))
    np.put_along_axis(parts, rng.integers(0, 32, (batch, columns // 32, 1)), 32767, -1)
    steps = 2.0 ** rng.integers(-30, -5, (batch, columns // 32, 1))
    return (parts * steps).astype(np.float32).reshape(batch, columns)


def _ours(name: str, weight: Array, x: Array, begin: int = 0, end: int | None = None, *, rounded: bool) -> Array:
    """The product, by memory that holds NaN before."""
    kind, (batch, columns) = getattr(record, name), x.shape
    end = len(weight) if end is None else end
    memory = np.full(prepared_bytes(columns, batch) // 4, np.nan, np.float32)
    y = np.full((batch, len(weight) + 3), np.nan, np.float32)
    addresses = (a.ctypes.data for a in (weight, x))
    address, kept = rows(kind, rounded=rounded).address, y[:, 1:].ctypes.data
    _product(address, int(rounded), *addresses, columns, batch, memory.ctypes.data, begin, end, kept, y.shape[1])
    assert np.isnan(y[:, : begin + 1]).all()
    assert np.isnan(y[:, end + 1 :]).all()
    return y[:, begin + 1 : end + 1]


def _allowed(weights: Array, x: Array) -> Array:
    """What rounding may do: some units of the largest weight of each block, times x."""
    largest = abs(weights.reshape(len(weights), -1, 32)).max(-1).repeat(32, -1)
    allowed: Array = 4e-7 * (abs(x).astype(np.float64) @ largest.T)
    return allowed


@pytest.mark.parametrize("name", NAMES[1:])
def test_a_block_has_the_size_that_gguf_says(name: str) -> None:
    kind = getattr(record, name)
    assert GGML_QUANT_SIZES[GGMLQuantizationType[name]] == (BLOCK_NUMBERS[kind], BLOCK_BYTES[kind])
    assert row_bytes(kind, 1536) == 1536 // BLOCK_NUMBERS[kind] * BLOCK_BYTES[kind]


@KINDS
@WAYS
@pytest.mark.parametrize("seed", range(6))
def test_the_product_is_that_of_the_expanded_weights(name: str, seed: int, rounded: bool) -> None:
    rng = np.random.default_rng(seed)
    columns = BLOCK_NUMBERS[getattr(record, name)] * int(rng.integers(1, 8))
    count, batch = int(rng.integers(1, 40)), seed + 1
    begin = int(rng.integers(0, count))
    end = int(rng.integers(begin, count + 1))
    weight = _drawn(rng, name, count, columns)
    x, expanded = _vectors(rng, batch, columns), _expanded(name, weight)[begin:end]
    difference = abs(_ours(name, weight, x, begin, end, rounded=rounded) - x.astype(np.float64) @ expanded.T)
    assert (difference <= _allowed(expanded, x)).all() if end > begin else difference.size == 0


@KINDS
@WAYS
def test_each_number_meets_its_own_x(name: str, rounded: bool) -> None:
    rng = np.random.default_rng(1)
    columns = 2 * BLOCK_NUMBERS[getattr(record, name)]
    weight = _drawn(rng, name, 3, columns)
    expanded = _expanded(name, weight)
    ours = _ours(name, weight, np.eye(columns, dtype=np.float32), rounded=rounded)
    assert (abs(ours - expanded.T) <= _allowed(expanded, np.eye(columns))).all()


@KINDS
@WAYS
def test_a_vector_has_the_same_bits_alone_and_among_others(name: str, rounded: bool) -> None:
    rng = np.random.default_rng(2)
    columns = 3 * BLOCK_NUMBERS[getattr(record, name)]
    weight, x = _drawn(rng, name, 9, columns), rng.standard_normal((11, columns)).astype(np.float32)
    alone = np.concatenate([_ours(name, weight, x[b : b + 1].copy(), rounded=rounded) for b in range(len(x))])
    for batch in range(1, len(x) + 1):
        np.testing.assert_array_equal(_ours(name, weight, x[:batch].copy(), rounded=rounded), alone[:batch])


@KINDS
@WAYS
def test_a_row_has_the_same_bits_wherever_it_is(name: str, rounded: bool) -> None:
    rng = np.random.default_rng(6)
    columns = BLOCK_NUMBERS[getattr(record, name)]
    weight, x = _drawn(rng, name, 5, columns), rng.standard_normal((1, columns)).astype(np.float32)
    all_rows = _ours(name, weight, x, rounded=rounded)
    for begin in range(len(weight)):
        np.testing.assert_array_equal(_ours(name, weight, x, begin, rounded=rounded), all_rows[:, begin:])


@KINDS
@WAYS
def test_scales_as_small_and_as_large_as_fp16_has_them(name: str, rounded: bool) -> None:
    rng = np.random.default_rng(3)
    columns = 2 * BLOCK_NUMBERS[getattr(record, name)]
    x = _vectors(rng, 2, columns)
    for sizes in ([6e-8, -6e-8, 6e-5, 6.2e-5], [0.0, -0.0, 1e-3], [65504, -65504]):
        weight = _drawn(rng, name, 7, columns, np.array(sizes))
        expanded = _expanded(name, weight)
        difference = abs(_ours(name, weight, x, rounded=rounded) - x.astype(np.float64) @ expanded.T)
        assert (difference <= _allowed(expanded, x)).all()


@pytest.mark.parametrize("name", NAMES[1:])
@WAYS
@pytest.mark.parametrize("size", [np.nan, np.inf])
def test_a_row_that_is_no_number_spoils_itself_only(name: str, size: float, rounded: bool) -> None:
    rng = np.random.default_rng(4)
    columns = 2 * BLOCK_NUMBERS[getattr(record, name)]
    weight, x = _drawn(rng, name, 5, columns), rng.standard_normal((4, columns)).astype(np.float32)
    weight[2] = _drawn(rng, name, 1, columns, np.array([size]))[0]
    finite = np.isfinite(_ours(name, weight, x, rounded=rounded))
    assert (finite == [True, True, False, True, True]).all()


@KINDS
@WAYS
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_vector_that_is_no_number_spoils_itself_only(name: str, bad: float, rounded: bool) -> None:
    rng = np.random.default_rng(5)
    columns = 2 * BLOCK_NUMBERS[getattr(record, name)]
    weight, x = _drawn(rng, name, 5, columns), rng.standard_normal((4, columns)).astype(np.float32)
    if name in ("I8", "Q8_0"):
        weight |= 1  # times 0, infinity is no number, and here it is to be what comes out
    x[1, 7] = bad
    finite = np.isfinite(_ours(name, weight, x, rounded=rounded))
    assert not finite[1].any()
    assert finite[[0, 2, 3]].all()


@pytest.mark.parametrize("size", [0.0, 1e-44, 1e-38, 1e-31, 1e-29, 1, 1e37])
def test_numbers_are_rounded_to_the_nearest_step(size: float) -> None:
    """What is too small to have steps is 0."""
    rng = np.random.default_rng(7)
    weight, x = np.eye(32, dtype=np.int8).view(np.uint8), (size * rng.standard_normal((9, 32))).astype(np.float32)
    step = abs(x).max(-1, keepdims=True) / 32767
    assert (abs(_ours("I8", weight, x, rounded=True).astype(np.float64) - x) <= 0.501 * step + 1e-30).all()


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
