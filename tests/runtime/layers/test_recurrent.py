"""A recurrent layer is where its tokens have brought it, whatever way they came, and can go back to where it was."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from stratakv.runtime.layers.base import State
from stratakv.runtime.layers.recurrent import RecurrentLayer, mixing
from stratakv.storage import RecordError

L, TOKENS = 4, 23
ROWS = torch.randn(TOKENS, 3, generator=torch.Generator().manual_seed(0))
SHAPES: dict[str, tuple[int, ...]] = {"sum": (3,), "last": (2, 3)}
NAMES: tuple[list[bytes], np.ndarray] = ([], np.empty((0, L), dtype=np.uint32))


def advance(inputs: tuple[Tensor, ...], state: State) -> tuple[Tensor, State]:
    """Each token halves the sum and adds itself; the last two are kept."""
    outs, total = [], state["sum"]
    for row in inputs[0]:
        total = total / 2 + row
        outs.append(total)
    return torch.stack(outs), {"sum": total, "last": torch.cat([state["last"], inputs[0]])[-2:]}


def layer() -> RecurrentLayer:
    return RecurrentLayer(5, SHAPES, L, torch.device("cpu"))


def grown(layer: RecurrentLayer, start: int, *ends: int) -> Tensor:
    """What the layer makes of the tokens `start .. ends[-1]`, in pieces."""
    pieces = zip((start, *ends[:-1]), ends, strict=True)
    return torch.cat([layer.mix((ROWS[first:end],), advance) for first, end in pieces])


def after(*ends: int) -> RecurrentLayer:
    found = layer()
    grown(found, 0, *ends)
    return found


EXPECTED = grown(layer(), 0, TOKENS)


@pytest.mark.parametrize("ends", [(TOKENS,), (1, 3, 4, 11, TOKENS), tuple(range(1, TOKENS + 1))])
def test_cuts_change_nothing(ends: tuple[int, ...]) -> None:
    assert torch.equal(grown(layer(), 0, *ends), EXPECTED)


def test_rows_of_a_batch_go_on_from_states_of_their_own() -> None:
    both = [[after(7)], [after(12)]]
    out = mixing(both)(0, (torch.stack([ROWS[7:9], ROWS[12:14]]),), advance)
    assert torch.equal(out, torch.stack([EXPECTED[7:9], EXPECTED[12:14]]))


def test_a_point_and_a_copy_stay_as_they_are() -> None:
    first, other = after(6, 9), layer()
    point = first.snapshot()
    other.follow(first)
    for _ in range(2):
        assert torch.equal(grown(first, 9, 15, TOKENS), EXPECTED[9:])
        first.rollback(point)
    assert torch.equal(grown(other, 9, TOKENS), EXPECTED[9:])
    first.rollback(point)
    assert torch.equal(first.leave(1, 300)["5/sum"], after(8).export()["sum"])  # the page's end came back, too


def test_a_step_is_forgotten_whether_it_got_here_or_not() -> None:
    first = after(9, 10)
    for _ in range(2):
        first.undo_step(9 % L, 9)
        assert torch.equal(first.export()["sum"], after(9).export()["sum"])
    assert torch.equal(grown(first, 9, TOKENS), EXPECTED[9:])


@pytest.mark.parametrize("ends", [(8,), (9,), (11,), (5, 11), (8, 9, 10)])
def test_what_is_left_at_the_last_pages_end_can_be_adopted(ends: tuple[int, ...]) -> None:
    left, other = after(*ends).leave(ends[-1] - 8, 300), layer()
    assert left.keys() == {"5/sum", "5/last"}
    other.check_left(left, 8)
    other.adopt(*NAMES, 8, left)
    assert torch.equal(grown(other, 8, TOKENS), EXPECTED[8:])
    assert other.leave((TOKENS - 8) % L, 300).keys() == left.keys()


def test_what_was_exported_is_restored() -> None:
    tensors = {f"a.{name}": tensor for name, tensor in after(10).export().items()}
    other = layer()
    assert other.check_exported("a.", tensors, 10) == tensors.keys() == {"a.sum", "a.last"}
    other.restore({name[2:]: tensor for name, tensor in tensors.items()}, *NAMES, 10, has_state=False)
    assert other.leave(2, 300) == {}, "nobody knows the state two tokens ago"
    assert torch.equal(grown(other, 10, 11, TOKENS), EXPECTED[10:])
    assert other.leave(TOKENS % L, 300)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"5/sum": torch.zeros(4)}, r"layer 5: sum: torch\.float32 \(4,\), expected torch\.float32 \(3,\)"),
        ({"5/sum": torch.zeros(3).double()}, r"layer 5: sum: torch\.float64 \(3,\), expected"),
        ({"5/sum": torch.tensor([0.0, torch.nan, 0.0])}, "layer 5: sum: has a value that is not finite"),
        ({}, "layer 5: sum: nothing, expected"),
    ],
)
def test_another_state_is_refused(change: dict[str, Tensor], told: str) -> None:
    with pytest.raises(RecordError, match=told):
        layer().check_left({"5/last": torch.zeros(2, 3), **change}, 8)


def test_it_neither_attends_nor_is_cut() -> None:
    with pytest.raises(AssertionError, match="attends to nothing"):
        layer().step(ROWS, ROWS, ROWS, 1.0)
    with pytest.raises(AssertionError, match="an earlier state is gone"):
        after(9).truncate(1)
