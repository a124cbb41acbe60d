"""A tree of boxes: each is that of exactly its tokens, however they came and whatever was dropped."""

from __future__ import annotations

import pytest
import torch
from closeness import poison_empty
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from stratakv.kernels.box_scores import box_scores
from stratakv.retrieval.structures.box_tree import BoxTree

SIZES = [(16,), (8, 32, 128), (16, 64, 256), (4, 20, 80), (1, 7, 28)]


@pytest.fixture(autouse=True)
def _poisoned(monkeypatch: pytest.MonkeyPatch) -> None:
    poison_empty(monkeypatch)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def assert_exact(levels: list[Tensor], sizes: tuple[int, ...], keys: Tensor) -> None:
    """Each box holds the extremes of its own tokens, to the bit."""
    for size, boxes in zip(sizes, levels, strict=True):
        runs = keys.split(size, 1) if keys.shape[1] else ()
        assert boxes.shape == (keys.shape[0], len(runs), 2 * keys.shape[2])
        for i, run in enumerate(runs):
            assert torch.equal(boxes[:, i], torch.cat([run.amax(1), run.amin(1)], -1)), f"box {i} of {size} tokens"


@settings(max_examples=60, derandomize=True, deadline=None)
@given(sizes=st.sampled_from(SIZES), data=st.data())
def test_boxes_are_those_of_their_tokens(sizes: tuple[int, ...], data: st.DataObject) -> None:
    """After appending and truncating in turn; also for a view of fewer tokens, and for none."""
    held = normal(2, 0, 6)
    tree = BoxTree.over(held, sizes)
    for turn in range(data.draw(st.integers(1, 5))):
        further = normal(2, data.draw(st.integers(0, 40)) * sizes[0], 6, seed=turn)
        tree.append(further)
        held = torch.cat([held, further], 1)
        assert tree.num_tokens == held.shape[1]
        assert_exact(tree.levels, sizes, held)
        fewer = data.draw(st.integers(0, held.shape[1] // sizes[0])) * sizes[0]
        assert_exact(tree.up_to(fewer), sizes, held[:, :fewer])
        assert_exact(tree.levels, sizes, held)
        if data.draw(st.booleans()):
            tree.truncate(fewer)
            held = held[:, :fewer]
            assert_exact(tree.levels, sizes, held)


@settings(max_examples=40, derandomize=True, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), sizes=st.sampled_from(SIZES), units=st.integers(1, 90))
def test_bounds_hold_on_every_level(seed: int, sizes: tuple[int, ...], units: int) -> None:
    """No key under a node scores above its hi or below its lo; and a parent's bounds contain its children's."""
    keys, q = normal(2, units * sizes[0], 16, seed=seed % 2**31), normal(2, 3, 16, seed=seed % 997)
    exact = q @ keys.transpose(1, 2)
    slack = 1e-5 * float((q.abs() @ keys.abs().transpose(1, 2)).max())
    inner: tuple[Tensor, Tensor] = exact, exact
    below = 1
    for size, boxes in zip(sizes, BoxTree.over(keys, sizes).levels, strict=True):
        hi, lo = box_scores(q, boxes)
        for child_hi, child_lo, per_node in ((exact, exact, size), (*inner, size // below)):
            for i, (highest, lowest) in enumerate(
                zip(child_hi.split(per_node, -1), child_lo.split(per_node, -1), strict=True)
            ):
                assert (hi[..., i] + slack >= highest.amax(-1)).all()
                assert (lo[..., i] - slack <= lowest.amin(-1)).all()
        inner, below = (hi, lo), size


def test_no_bound_is_rounded() -> None:
    keys = normal(1, 64, 8).to(torch.bfloat16)
    for boxes, exact in zip(
        BoxTree.over(keys, (16, 64)).levels, BoxTree.over(keys.double(), (16, 64)).levels, strict=True
    ):
        assert torch.equal(boxes.double(), exact.double())
