"""Public ops at the sizes of real models: on CUDA they run the Triton kernels, here against their references.

Small and odd sizes are in `tests/kernels`, which runs on the GPU as well where there is one.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from closeness import assert_close
from torch import Tensor

from stratakv.kernels.box_scores import box_scores, box_scores_reference
from stratakv.kernels.choose_units import choose_units, choose_units_reference
from stratakv.kernels.code_scores import code_scores, code_scores_reference
from stratakv.kernels.codebook_scores import half_norms, nearest_codewords, nearest_codewords_reference
from stratakv.kernels.decode_attention import decode_attention, decode_attention_reference
from stratakv.kernels.fetch_units import Wanted, fetch_units, fetch_units_reference
from stratakv.kernels.landmarks import landmarks, landmarks_reference
from stratakv.kernels.launch import reaches_from, uses_triton
from stratakv.kernels.low_rank import rebuild_keys, rebuild_keys_reference
from stratakv.kernels.merge_states import merge_states, merge_states_reference
from stratakv.kernels.page_bounds import bound_scores, bound_scores_reference, page_bounds, page_bounds_reference
from stratakv.kernels.paged_attention import paged_attention, paged_attention_reference
from stratakv.kernels.place_units import Places, place_units
from stratakv.kernels.pq_scores import pq_scores, pq_scores_reference
from stratakv.kernels.simhash import random_planes, simhash, simhash_reference

pytestmark = pytest.mark.gpu
DEVICE = "cuda"
HALVES = [torch.float16, torch.bfloat16]
MODELS = [(3, 3, 64), (8, 4, 128), (1, 4, 256), (2, 7, 128)]
"""KV heads, query heads of each, head dim: SmolLM2, Llama 3, Gemma 3, Qwen 2.5."""


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def normal(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, device=DEVICE).to(dtype)


def close(found: Any, expected: Any, dtype: torch.dtype = torch.float32) -> None:
    """An out of `dtype` and its log-sum-exp, or fp32 tensors."""
    if isinstance(found, Tensor):
        found, expected = (found,), (expected,)
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == other.dtype
        assert_close("out" if one.dtype == dtype else "lse", one, other, dtype)


def test_kernels_are_used() -> None:
    host = torch.zeros(4)
    assert uses_triton(normal(4))
    assert reaches_from(torch.device(DEVICE, 0), host.pin_memory(), normal(4))
    assert not reaches_from(torch.device(DEVICE, 0), host)


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize(("groups", "heads", "dim"), MODELS)
@pytest.mark.parametrize("lengths", [[1], [2048, 7], [100_000]], ids=str)
def test_decode_attention(lengths: list[int], groups: int, heads: int, dim: int, dtype: torch.dtype) -> None:
    runs = [(normal(groups, n, dim, dtype=dtype), normal(groups, n, dim, dtype=dtype)) for n in lengths]
    q = normal(groups, heads, dim, dtype=dtype)
    found, expected = (op(q, runs, scale=dim**-0.5) for op in (decode_attention, decode_attention_reference))
    close(found, expected, dtype)


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize(("groups", "heads", "dim"), MODELS)
@pytest.mark.parametrize("unit", [1, 16])
def test_paged_attention(unit: int, groups: int, heads: int, dim: int, dtype: torch.dtype) -> None:
    """Three sequences of up to 16,384 tokens over one pool, 2048 tokens of each, keys rotated on the way."""
    pages, count = 1024, 2048 // unit
    pool = normal(3 * pages, groups, 2, 16, dim, dtype=dtype)
    table = torch.randperm(3 * pages, device=DEVICE).view(3, pages)
    ids = torch.rand(3, groups, pages * 16 // unit, device=DEVICE).topk(count).indices.sort(-1).values
    angle = torch.arange(pages * 16, device=DEVICE).unsqueeze(1) * 1e4 ** -torch.linspace(0, 1, dim // 2, device=DEVICE)
    of = normal(3, groups, heads, dim, dtype=dtype), pool, table, ids
    given: dict[str, Any] = {
        "unit": unit, "scale": dim**-0.5, "counts": torch.randint(0, count, (3, groups), device=DEVICE),
        "lengths": torch.tensor([16384, 9000, 33], device=DEVICE), "bias": normal(3, groups, heads, 2048),
    }  # fmt: skip
    for rotation in ({}, {"cos": angle.cos(), "sin": angle.sin()}, {"keys": normal(3, groups, 2048, dim)}):
        found, expected = (op(*of, **given, **rotation) for op in (paged_attention, paged_attention_reference))
        assert torch.equal(found[1].isinf(), expected[1].isinf())
        close((found[0], found[1].nan_to_num(neginf=0)), (expected[0], expected[1].nan_to_num(neginf=0)), dtype)


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("shape", [(32, 128), (32, 2048, 128)], ids=str)
def test_merge_states(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    """Of a decode step, and of prefill."""
    outs, lses = [normal(*shape, dtype=dtype) for _ in range(9)], [normal(*shape[:-1]) for _ in range(9)]
    close(merge_states(outs, lses), merge_states_reference(outs, lses), dtype)


@pytest.mark.parametrize(("groups", "heads", "dim"), MODELS)
def test_pages_and_their_scores(groups: int, heads: int, dim: int) -> None:
    keys, q = normal(groups, 32_768, dim, dtype=torch.bfloat16), normal(groups, heads, dim)
    bounds = page_bounds(keys, 16)
    assert torch.equal(bounds, page_bounds_reference(keys, 16))
    close(bound_scores(q, bounds), bound_scores_reference(q, bounds))
    close(box_scores(q, bounds), box_scores_reference(q, bounds))
    close(landmarks(keys, 8), landmarks_reference(keys, 8))


@pytest.mark.parametrize(("groups", "heads", "dim"), MODELS)
def test_coded_keys(groups: int, heads: int, dim: int) -> None:
    tables = normal(groups, 6, heads, 256).transpose(1, 2)
    codes = torch.randint(0, 256, (groups, 100_000, 6), device=DEVICE, dtype=torch.uint8)
    close(pq_scores(tables, codes), pq_scores_reference(tables, codes))
    keys, words = normal(groups, 300, dim), normal(groups, 1024, dim)
    metric = torch.eye(dim, device=DEVICE) + 0.1
    metric = (metric @ metric.T).expand(groups, -1, -1).contiguous()
    found = nearest_codewords(keys, metric, words, half_norms(metric, words))
    expected = nearest_codewords_reference(keys, metric, words)
    apart = [keys - words.gather(1, codes.unsqueeze(-1).expand(-1, -1, dim)) for codes in (found, expected)]
    distances = [((rest @ metric) * rest).sum(-1) for rest in apart]
    assert (distances[0] <= distances[1] * (1 + 1e-4)).all(), "of two that are as near, rounding may choose either"


@pytest.mark.parametrize(("groups", "heads", "dim"), MODELS)
def test_keys_rebuilt_and_hashed(groups: int, heads: int, dim: int) -> None:
    factors, basis = normal(16_384, 160, dtype=torch.float16), normal(groups, dim, 160)
    ids, angle = torch.randint(0, 16_384, (groups, 2048), device=DEVICE), normal(16_384, dim // 2)
    of = factors, basis, ids, angle.cos(), angle.sin()
    close(rebuild_keys(*of), rebuild_keys_reference(*of))
    planes, keys = random_planes(dim, 10, 150, seed=heads).to(torch.device(DEVICE)), normal(groups, 1000, dim)
    assert torch.equal(simhash(keys, planes), simhash_reference(keys, planes))


@pytest.mark.parametrize("unit", [1, 16])
def test_units_of_pinned_memory(unit: int) -> None:
    """Some steps of a cache of twice a selection: tables and rows as the reference makes them on the host."""
    groups, dim, pages, count, units = 8, 128, 1024, 2048 // unit, 16 // unit
    source = torch.randn(pages * groups * 2 * units, unit * dim).bfloat16()
    table, rows = torch.randperm(pages).int(), torch.randperm(2 * groups * 2 * count).view(2, groups, -1)
    mine, theirs = (Places.empty(groups, pages * units, 2 * count, torch.device(d)) for d in (DEVICE, "cpu"))
    out, expected = (torch.zeros(rows.numel(), unit * dim, dtype=torch.bfloat16, device=d) for d in (DEVICE, "cpu"))
    pinned = source.pin_memory()
    for _ in range(4):
        ids = torch.stack([torch.randperm(pages * units)[:count].sort().values for _ in range(groups)])
        for places, target, of in ((mine, out, pinned), (theirs, expected, source)):
            places.clock.add_(1)
            here = ids.to(target.device)
            fetch = fetch_units if target is out else fetch_units_reference
            wanted = Wanted(
                here, *place_units(here, places), table.to(target.device), rows.to(target.device), sides=2, units=units
            )
            fetch(of, wanted, target)
    assert all(torch.equal(a.cpu(), b) for a, b in zip(mine, theirs, strict=True))
    assert torch.equal(out.cpu(), expected)


@pytest.mark.parametrize(("groups", "heads", "dim"), MODELS)
def test_units_chosen_by_codes(groups: int, heads: int, dim: int) -> None:
    """No bit of it depends on the room, be it a multiple of 16 or not."""
    total, q = 100_003, normal(groups, heads, dim) / dim**0.5
    basis, books = normal(groups, 48, dim) / dim**0.5, normal(groups, 6, 8, 256)
    codes = torch.randint(0, 256, (groups, total + 4096, 6), device=DEVICE).to(torch.uint8)
    anchors = normal(groups, (total + 4096) // 64, dim, dtype=torch.bfloat16)
    counts, found = torch.tensor([total], device=DEVICE).expand(groups), []
    for room in (total, total + 1, total // 16 * 16 + 1024):
        of = q, basis, books, codes[:, :room].contiguous(), anchors, counts
        scores = code_scores(*of, segment=64)
        chosen = choose_units(scores, counts, counts // 50, most=2048, sink=16, local=64)
        expected = choose_units_reference(scores, counts, counts // 50, most=2048, sink=16, local=64)
        found.append((scores[:, :total], *chosen))
        assert all(torch.equal(one, other) for one, other in zip(chosen, expected, strict=True))
        assert all(torch.equal(one, other) for one, other in zip(found[0], found[-1], strict=True))
    close(found[0][0], code_scores_reference(q, basis, books, codes[:, :total], anchors, counts, segment=64))


def test_ops_do_not_wait_for_the_device() -> None:
    """Any of these would raise where it copied something back."""
    q, k, ids = normal(2, 4, 64), normal(2, 512, 64), torch.arange(8, device=DEVICE).expand(1, 2, 8).contiguous()
    pool, table = normal(32, 2, 2, 16, 64), torch.arange(32, device=DEVICE).view(1, 32)
    rows = torch.arange(64, device=DEVICE).view(2, 2, 16)
    wanted = Wanted(ids[0], ids[0].int(), ids[0] >= 0, table[0].int(), rows, 2, 4)
    pinned = torch.zeros(32 * 2 * 2 * 4, 8).pin_memory()
    coded = normal(2, 48, 64), normal(2, 6, 8, 256), torch.zeros(2, 64, 6, dtype=torch.uint8, device=DEVICE)
    length = torch.tensor([50], device=DEVICE)
    ops = [
        partial(decode_attention, q, [(k, k), (k[:, :3], k[:, :3])], scale=0.1),
        partial(paged_attention, q.unsqueeze(0), pool, table, ids, unit=16, scale=0.1),
        partial(bound_scores, q, page_bounds(k, 16)),
        partial(landmarks, k, 8),
        partial(code_scores, q, *coded, k[:, :4], length.expand(2), segment=16),
        partial(choose_units, normal(2, 512), length.expand(2), length.expand(2), most=9, sink=1, local=2),
        partial(place_units, ids[0], Places.empty(2, 64, 16, torch.device(DEVICE))),
        partial(fetch_units, pinned, wanted, torch.zeros(64, 8, device=DEVICE)),
    ]
    for op in ops:
        op()  # compiles
    torch.cuda.set_sync_debug_mode("error")
    try:
        for op in ops:
            op()
    finally:
        torch.cuda.set_sync_debug_mode("default")
