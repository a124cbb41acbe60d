"""A layer with a window attends to its last tokens, whatever way they came, and keeps little more than those."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from closeness import assert_close
from kv_pages import SMALL
from layer_kv import KV, QUERIES, REPEATS, SCALE, SIZE
from torch import Tensor

from stratakv.runtime.layers import sliding as module
from stratakv.runtime.layers.sliding import SlidingLayer
from stratakv.storage import RecordError

WINDOW, TOKENS = 6, 40
KEEP = WINDOW - 1 + SIZE
NAMES: tuple[list[bytes], np.ndarray] = ([], np.empty((0, SIZE), dtype=np.uint32))


def layer() -> SlidingLayer:
    return SlidingLayer(3, WINDOW, SMALL, torch.float32, torch.device("cpu"))


def extended(layer: SlidingLayer, start: int, end: int) -> Tensor:
    return layer.extend(QUERIES[:, start:end], *KV[:, :, start:end], start, SCALE)


def stepped(layer: SlidingLayer, start: int, end: int) -> Tensor:
    return torch.stack([layer.step(QUERIES[:, at], *KV[:, :, at], SCALE) for at in range(start, end)], 1)


def known(layer: SlidingLayer, start: int, end: int) -> Tensor:
    return layer.extend_known(QUERIES[:, start:end], *KV[:, :, start:end], start, SCALE, *NAMES)


def expected(start: int, end: int) -> Tensor:
    keys, values = KV[:, :, :end].double().repeat_interleave(REPEATS, 1)
    scores = QUERIES[:, start:end].double() @ keys.transpose(1, 2) * SCALE
    behind = torch.arange(start, end)[:, None] - torch.arange(end)
    return scores.masked_fill((behind < 0) | (behind >= WINDOW), -torch.inf).softmax(-1) @ values


def after(num_tokens: int) -> SlidingLayer:
    """A layer that has read so many tokens."""
    read = layer()
    extended(read, 0, num_tokens)
    return read


@pytest.mark.parametrize("way", [extended, stepped, known])
@pytest.mark.parametrize("cuts", [(TOKENS,), (1, 3, WINDOW, 20, TOKENS), (KEEP, 2 * KEEP + 1, TOKENS)])
@pytest.mark.parametrize("together", [4, 128])
def test_each_token_attends_to_its_window(
    way: Callable[..., Tensor], cuts: tuple[int, ...], together: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "BAND_ROWS", together)
    grown, start = layer(), 0
    for end in cuts:
        assert_close("out", way(grown, start, end), expected(start, end))
        start = end
    assert_close("out", stepped(grown, TOKENS, TOKENS + 3), expected(TOKENS, TOKENS + 3))


@pytest.mark.parametrize("way", [extended, stepped, known])
def test_sinks_join_every_softmax(way: Callable[..., Tensor]) -> None:
    sinks = torch.linspace(-2, 4, len(QUERIES))
    layer = SlidingLayer(3, WINDOW, SMALL, torch.float32, torch.device("cpu"), sinks)
    keys = KV[0].double().repeat_interleave(REPEATS, 0)
    scores = QUERIES.double() @ keys.transpose(1, 2) * SCALE
    behind = torch.arange(TOKENS)[:, None] - torch.arange(TOKENS)
    lse = scores[:, :TOKENS, :TOKENS].masked_fill((behind < 0) | (behind >= WINDOW), -torch.inf).logsumexp(-1)
    share = torch.sigmoid(lse - sinks[:, None]).unsqueeze(-1)
    found = torch.cat([way(layer, start, end) for start, end in ((0, 1), (1, 9), (9, TOKENS))], 1)
    assert_close("out", found, expected(0, TOKENS) * share)


def test_how_many_are_held_changes_no_bit() -> None:
    """Behind the same tokens, one has just what the window needs and one a page more."""
    long = after(20)
    short = layer()
    short.restore({"window": KV[:, :, 20 - WINDOW + 1 : 20]}, *NAMES, 20, has_state=False)
    assert torch.equal(extended(long, 20, 25), extended(short, 20, 25))


def test_a_copy_has_the_last_tokens_and_stays_as_it_is() -> None:
    grown = after(30)
    end, kv = point = grown.snapshot()
    assert end == 30
    assert torch.equal(kv, KV[:, :, 30 - KEEP : 30])
    other = layer()
    other.follow(grown)
    found = stepped(grown, 30, TOKENS)
    grown.rollback(point)
    assert torch.equal(stepped(grown, 30, TOKENS), found)
    assert torch.equal(stepped(other, 30, TOKENS), found)


def test_a_step_is_forgotten_whether_it_got_here_or_not() -> None:
    grown = after(21)
    stepped(grown, 21, 22)
    for _ in range(2):
        grown.undo_step(21 % SIZE, 21)
        assert torch.equal(grown.export()["window"], KV[:, :, 21 - KEEP : 21])
    assert_close("out", stepped(grown, 21, 23), expected(21, 23))


def test_what_is_left_at_the_last_pages_end_can_be_adopted() -> None:
    """Up to a page later, all that the window held there is still held."""
    for num_tokens in (2 * SIZE, 2 * SIZE + 1, 3 * SIZE - 1):
        left = after(num_tokens).leave(num_tokens - 2 * SIZE, num_tokens)
        other = layer()
        other.check_left(left, 2 * SIZE)
        other.adopt(*NAMES, 2 * SIZE, left)
        assert torch.equal(other.export()["window"], left["3"])
        assert_close("out", stepped(other, 2 * SIZE, TOKENS), expected(2 * SIZE, TOKENS))


def test_what_was_exported_is_restored() -> None:
    tensors = {f"a.{name}": tensor for name, tensor in after(17).export().items()}
    other = layer()
    assert other.check_exported("a.", tensors, 17) == tensors.keys() == {"a.window"}
    other.restore({"window": tensors["a.window"]}, *NAMES, 17, has_state=False)
    assert_close("out", stepped(other, 17, TOKENS), expected(17, TOKENS))


@pytest.mark.parametrize(
    ("count", "num_tokens"), [(WINDOW - 2, 30), (KEEP + 1, 30), (3, 4), (4, 3)], ids=lambda number: str(number)
)
def test_a_window_of_another_length_is_refused(count: int, num_tokens: int) -> None:
    left = {"3": KV[:, :, :count]}
    with pytest.raises(
        RecordError, match=f"layer 3: of {count} tokens, not what a window of 6 holds after {num_tokens}"
    ):
        layer().check_left(left, num_tokens)
    with pytest.raises(RecordError, match=r"^a\.window: of 0 tokens"):
        layer().check_exported("a.", left, num_tokens)


def test_it_cannot_be_cut_at_a_page() -> None:
    with pytest.raises(AssertionError, match="only paged layers"):
        after(20).truncate(1)
