"""A layer with all of a text: exact over what it reads, from any point of its past, and in copies of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache

import numpy as np
import pytest
import torch
from closeness import assert_close
from kv_pages import SMALL
from layer_kv import KV, PAGES, QUERIES, REPEATS, SCALE, SIZE, TEXT, attended, decode, no_damage, opened, workspace_of
from torch import Tensor

from stratakv.retrieval.params import IndexParams
from stratakv.retrieval.registry import make_index
from stratakv.runtime import ConversationError
from stratakv.runtime.layers.sliding import SlidingLayer
from stratakv.runtime.layers.step import Step
from stratakv.runtime.layers.tiered import LEARNED_EVERY, TieredLayer, tiered_layers
from stratakv.storage import RecordError, TieredStore

BUDGET, TOKENS = 24, 41
Make = Callable[..., TieredLayer]


every_memory = pytest.mark.parametrize("name", ["bounds", "louiskv:similar=0.2", "actqkv"])
"""Indexes that keep nothing of a step, and such as do."""


@pytest.fixture
def store() -> Iterator[TieredStore]:
    with opened() as store:
        yield store


@pytest.fixture
def make(store: TieredStore) -> Make:
    """Layers over one store, in one workspace; those of one name have the same index."""
    workspace, params = workspace_of(TOKENS), IndexParams(page_size=SIZE, sink=4, local=4)
    index_of = cache(lambda name: make_index(name, params))

    def layer(name: str = "bounds", budget: int = BUDGET, sinks: Tensor | None = None) -> TieredLayer:
        index = index_of(name)
        return TieredLayer(0, store, index, workspace, lambda _: budget, no_damage, repeats=REPEATS, sinks=sinks)

    return layer


def prefill(layer: TieredLayer, start: int, end: int) -> Tensor:
    """One span, in two calls."""
    pages, middle, outs = slice(start // SIZE, end // SIZE), (start + end) // 2, []
    with layer.workspace.turns.taken():
        layer.begin()
        for first, last in ((start, middle), (middle, end)):
            outs.append(layer.extend(QUERIES[:, first:last], *KV[:, :, first:last], first, SCALE))
        layer.finish(TEXT.chains[pages], TEXT.tokens[pages], end - pages.start * SIZE)
        layer.end_prefill()
    return torch.cat(outs, 1)


def after(layer: TieredLayer, num_tokens: int) -> TieredLayer:
    prefill(layer, 0, num_tokens)
    return layer


def test_spans_and_steps_that_read_everything_are_exact(make: Make) -> None:
    layer, start = make(budget=1000), 0
    for end in (3, 13, 30):
        assert_close("out", prefill(layer, start, end), attended(start, end))
        start = end
    assert_close("out", decode(layer, 30, TOKENS), attended(30, TOKENS))
    assert (layer.sealed, layer.tail_len, layer.indexed) == (40, 1, 40)


@pytest.mark.parametrize("name", ["bounds", "magicpig", "shadowkv"])
def test_sinks_are_part_of_attention_whatever_is_chosen(name: str, make: Make) -> None:
    """A prefill's, and a step's with any index: the share that its own softmax leaves them."""
    sinks = torch.linspace(-2, 4, len(QUERIES))
    steps: list[Step] = []
    plain, layer = make(name), make(name, sinks=sinks)
    outs = []
    for one in (plain, layer):
        one.watch = lambda _, step: steps.append(step)
        outs.append((prefill(one, 0, 30), decode(one, 30, TOKENS)))
    raw = attended(0, 30)
    keys = KV[0, :, :30].double().repeat_interleave(REPEATS, 0)
    scores = QUERIES[:, :30].double() @ keys.transpose(1, 2) * SCALE
    lse = scores.masked_fill(torch.arange(30) > torch.arange(30)[:, None], -torch.inf).logsumexp(-1)
    assert_close("out", outs[1][0], raw * torch.sigmoid(lse - sinks[:, None]).unsqueeze(-1))
    of_steps = torch.stack([step.lse.flatten() for step in steps[TOKENS - 30 :]], 1)
    assert_close("out", outs[1][1], outs[0][1] * torch.sigmoid(of_steps - sinks[:, None]).unsqueeze(-1))
    for one, other in zip(steps[: TOKENS - 30], steps[TOKENS - 30 :], strict=True):
        assert torch.equal(one.out, other.out)  # whoever watches sees what was read


def test_a_step_attends_to_the_units_that_its_watcher_is_told_and_no_others(make: Make) -> None:
    layer, told = after(make(), 34), []
    layer.watch = lambda _, step: told.append((step, layer.sealed, layer.tail_len, layer.tokens_read))
    found = decode(layer, 34, TOKENS)
    assert len(told) == TOKENS - 34
    for row, (step, sealed, tail_len, tokens_read) in enumerate(told):
        assert isinstance(step, Step)
        assert step.ids is not None
        assert tokens_read == step.ids.shape[1] * SIZE + tail_len <= BUDGET
        for head, ids in enumerate(step.ids):
            tokens = (ids[:, None] * SIZE + np.arange(SIZE)).reshape(-1)
            tokens = np.append(tokens, np.arange(sealed, sealed + tail_len))
            keys, values = KV[:, head, tokens].double()
            heads = slice(head * REPEATS, (head + 1) * REPEATS)
            weights = (QUERIES[heads, 34 + row].double() @ keys.T * SCALE).softmax(-1)
            assert_close("out", found[heads, row], weights @ values)


@every_memory
def test_known_tokens_are_steps_and_seals(make: Make, name: str) -> None:
    one, other, some = after(make(name), 30), after(make(name), 30), slice(30 // SIZE, TOKENS // SIZE)
    with other.workspace.turns.taken():
        found = other.extend_known(
            QUERIES[:, 30:TOKENS], *KV[:, :, 30:TOKENS], 30, SCALE, TEXT.chains[some], TEXT.tokens[some]
        )
    assert torch.equal(found, decode(one, 30, TOKENS))
    assert np.array_equal(one.pids, other.pids)
    assert (other.sealed, other.tail_len, other.indexed) == (40, 1, 40)


@every_memory
def test_an_earlier_point_is_gone_back_to(make: Make, store: TieredStore, name: str) -> None:
    layer = after(make(name), 31)
    decode(layer, 31, 33)
    point, expected = layer.snapshot(), decode(layer, 33, TOKENS)
    layer.rollback(point)
    assert (layer.sealed, layer.tail_len, layer.indexed) == (32, 1, 32)
    assert torch.equal(torch.stack(layer.tail), KV[:, :, 32:33])
    assert store.host.num_pages == 8
    assert torch.equal(decode(layer, 33, TOKENS), expected)


@every_memory
def test_a_failed_step_is_undone(make: Make, name: str) -> None:
    """Whether it got to the layer or not."""
    layer, twin = after(make(name), 30), after(make(name), 30)
    for each in (layer, twin):
        decode(each, 30, 33)
    layer.undo_step(1, 33)
    with layer.workspace.turns.taken():
        layer.step(-QUERIES[:, 33], *torch.ones_like(KV[:, :, 0]), SCALE)
    layer.undo_step(1, 33)
    layer.undo_step(1, 33)
    assert torch.equal(decode(layer, 33, TOKENS), decode(twin, 33, TOKENS))


def test_what_a_step_read_is_remembered_and_comes_back_with_a_session(make: Make) -> None:
    layer, other = after(make("actqkv"), 33), make("actqkv")
    decode(layer, 33, 35)
    assert torch.equal(
        layer.state.recent, QUERIES[:, 33:35].unflatten(0, (2, -1)).transpose(1, 2).flatten(1, 2) * SCALE
    )
    other.restore(layer.export(), TEXT.chains[:8], TEXT.tokens[:8], 35, has_state=True)
    assert torch.equal(decode(other, 35, TOKENS), decode(layer, 35, TOKENS))


def test_what_is_kept_of_a_text_ends_with_a_page(make: Make) -> None:
    layer, short = after(make(), 35), after(make(), 28)
    layer.truncate(7)
    assert (layer.sealed, layer.tail_len, layer.indexed) == (28, 0, 28)
    assert torch.equal(decode(layer, 28, 33), decode(short, 28, 33))


@every_memory
def test_a_copy_shares_pages_and_goes_on_by_itself(make: Make, store: TieredStore, name: str) -> None:
    layer, other = after(make(name), 31), make(name)
    decode(layer, 31, 33)
    other.follow(layer)
    assert store.host.num_pages == 8
    expected = decode(layer, 33, TOKENS)
    layer.close()
    layer.close()
    assert (layer.pids.tolist(), layer.state, layer.indexed) == ([], None, 0)
    assert torch.equal(decode(other, 33, TOKENS), expected)
    other.close()
    assert store.host.num_free == PAGES


@pytest.mark.parametrize("has_state", [True, False])
def test_what_was_exported_is_restored_and_moves_no_page_again(make: Make, store: TieredStore, has_state: bool) -> None:
    layer, other = after(make(), 33), make()
    tensors = {f"a.{name}": tensor for name, tensor in layer.export().items()} | {"b.tail": KV}
    names = layer.check_exported("a.", tensors, 33)
    assert names == {"a.tail", "a.index.bounds"}
    read, own = store.counters.reads, {name.removeprefix("a."): tensors[name] for name in names}
    other.restore(own, TEXT.chains[:8], TEXT.tokens[:8], 33, has_state=has_state)
    assert (store.counters.reads == read) == has_state
    assert torch.equal(decode(other, 33, TOKENS), decode(layer, 33, TOKENS))


def test_a_tail_of_another_length_is_refused(make: Make) -> None:
    layer = make()
    with pytest.raises(RecordError, match=r"^a\.tail: nothing, expected torch.float32 \(2, 2, 1, 8\)"):
        layer.check_exported("a.", {}, 33)
    with pytest.raises(RecordError, match=r"^a\.tail: torch.float32 \(2, 2, 2, 8\), expected"):
        layer.check_exported("a.", {"a.tail": KV[:, :, :2]}, 33)
    assert layer.check_exported("a.", {"a.tail": KV[:, :, :2]}, 34) == {"a.tail"}


def test_what_an_index_learned_is_left_by_long_prefills_for_the_same_pages(make: Make) -> None:
    layer, other = after(make("spectral"), 36), make("spectral")
    assert layer.leave(0, LEARNED_EVERY - 1) == {}
    assert after(make("bounds"), 36).leave(0, LEARNED_EVERY) == {}
    left = layer.leave(0, LEARNED_EVERY)
    assert left.keys() == {f"0.{name}" for name in layer.index.export(layer.state)}
    assert left["0.codes"].shape[1] == 0
    other.adopt(TEXT.chains[:9], TEXT.tokens[:9], 36, left)
    expected, found = layer.index.export(layer.state), other.index.export(other.state)
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert torch.equal(decode(other, 36, 39), decode(layer, 36, 39))


def test_a_step_out_of_turn_is_refused(make: Make) -> None:
    layer = after(make(), 33)
    with pytest.raises(ConversationError, match="out of turn"):
        layer.step(QUERIES[:, 33], *KV[:, :, 33], SCALE)
    with pytest.raises(ConversationError, match="out of turn"):
        layer.seal(TEXT.chains[8], TEXT.tokens[8])
    assert layer.tail_len == 1


def test_tiered_layers_among_others(make: Make) -> None:
    first, second = make(), make()
    window = SlidingLayer(1, 6, SMALL, torch.float32, torch.device("cpu"))
    assert tiered_layers([first, window, second]) == [first, second]
