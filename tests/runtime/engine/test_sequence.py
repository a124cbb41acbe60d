"""Tokens are named in whole pages, join a sequence that is still as it was, and can be taken back to any point."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from kv_pages import SMALL, store_on

from stratakv.retrieval import IndexParams, make_index
from stratakv.runtime.api.errors import ConversationError
from stratakv.runtime.engine.sequence import GENERATED, PROMPT, NamedPages, Past, Sequence, StepPoint, root_of
from stratakv.runtime.layers.sliding import SlidingLayer
from stratakv.runtime.layers.tiered import TieredLayer
from stratakv.runtime.layers.workspace import Workspace
from stratakv.storage import ROOT, next_chain

PAGE, SALT, WINDOW = SMALL.page_size, b"settings", 6
CPU = torch.device("cpu")
KV = torch.randn(2, SMALL.num_heads, 64, SMALL.head_dim, generator=torch.Generator().manual_seed(0))
"""K and V of each position."""


def new(reach: int = 0) -> Sequence:
    """A sequence of a model without layers."""
    return Sequence(Past(reach), PAGE, SALT)


def named(sequence: Sequence, count: int, origin: int = PROMPT) -> NamedPages:
    """The next tokens: each is the number of its position."""
    return sequence.name_pages(np.arange(sequence.num_tokens, sequence.num_tokens + count), origin)


def add(sequence: Sequence, count: int, origin: int = PROMPT) -> None:
    sequence.commit(named(sequence, count, origin))


class Text:
    """A sequence of two layers: one with pages in a store of its own, and one with a window."""

    def __init__(self) -> None:
        self.store = store_on(None, SMALL, host=40)
        self.workspace = Workspace(SMALL, 64, CPU)
        self.sequence = self.other()

    def other(self) -> Sequence:
        """Another one over the same store."""
        index = make_index("dense", IndexParams(page_size=PAGE))
        tiered = TieredLayer(0, self.store, index, self.workspace, lambda n: n, lambda pids: None, repeats=1)
        return Sequence(Past(0, [tiered, SlidingLayer(1, WINDOW, SMALL, torch.float32, CPU)]), PAGE, SALT)

    def read(self, count: int) -> None:
        sequence = self.sequence
        new, (k, v) = named(sequence, count), KV[:, :, sequence.num_tokens : sequence.num_tokens + count]
        with self.workspace.turns.taken():
            for layer in sequence.layers:
                layer.begin()
                layer.extend(k, k, v, sequence.num_tokens, 0.3)
                layer.finish(new.chains, new.tokens, sequence.tail_len + count)
                layer.end_prefill()
        sequence.commit(new)

    def step(self, num_layers: int = 2) -> NamedPages:
        """Some layers take the next token in; the sequence does not."""
        k, v = KV[:, :, self.sequence.num_tokens]
        with self.workspace.turns.taken():
            for layer in self.sequence.layers[:num_layers]:
                layer.step(k, k, v, 0.3)
        return named(self.sequence, 1, GENERATED)

    def seal(self, new: NamedPages) -> None:
        with self.workspace.turns.taken():
            self.sequence.seal(new)


def held(sequence: Sequence) -> list[Any]:
    """All that a sequence and its layers know of the text."""
    tiered, sliding = sequence.layers
    assert isinstance(tiered, TieredLayer)
    end, kept = sliding.snapshot()
    layers = [tiered.pids.tolist(), tiered.pages.tail_copy().tolist(), tiered.indexed, end]
    layers.append(kept[:, :, 1 - WINDOW :].tolist())  # what is seen; how many more are kept may differ
    return [sequence.tokens.tolist(), sequence.origins.tolist(), sequence.chains.copy(), *layers]


@pytest.fixture
def text() -> Iterator[Text]:
    text = Text()
    yield text
    text.sequence.close()
    text.store.check_integrity()
    text.store.close()


# Names


def test_tail_and_new_tokens_are_named_in_whole_pages() -> None:
    sequence = new()
    add(sequence, PAGE + 2)
    assert (sequence.num_sealed, sequence.tail_len) == (PAGE, 2)
    found = named(sequence, 2 * PAGE - 1)
    assert found.tokens.tolist() == [[4, 5, 6, 7], [8, 9, 10, 11]]
    first = next_chain(sequence.last_chain, found.tokens[0])
    assert found.chains == [first, next_chain(first, found.tokens[1])]
    assert (sequence.num_tokens, len(sequence.chains)) == (PAGE + 2, 1), "naming changes nothing"
    assert len(named(sequence, 1)) == 0


def test_pages_with_a_generated_token_are_named_by_the_settings_too() -> None:
    sequence = new()
    add(sequence, PAGE)
    add(sequence, 1, GENERATED)
    add(sequence, 2 * PAGE - 1)
    one, two, three = sequence.tokens.reshape(3, PAGE)
    chain = next_chain(ROOT, one)
    expected = [chain, next_chain(chain, two, SALT)]
    assert sequence.chains == [*expected, next_chain(expected[-1], three)]
    assert sequence.origins.tolist() == [PROMPT] * PAGE + [GENERATED] + [PROMPT] * (2 * PAGE - 1)


def test_the_same_tokens_at_another_reach_have_other_names() -> None:
    assert root_of(0) == ROOT
    chains = [named(new(reach), PAGE).chains[0] for reach in (0, 71, 72)]
    assert len({*chains}) == 3


def test_the_first_pages_take_those_new_tokens_that_fill_them() -> None:
    sequence = new()
    add(sequence, 3)
    found = named(sequence, 2 * PAGE).first(1)
    assert (found.new.tolist(), found.tokens.tolist(), len(found)) == ([3], [[0, 1, 2, 3]], 1)
    sequence.commit(found, from_store=True)
    assert (sequence.num_tokens, sequence.num_from_store, sequence.tail_len) == (PAGE, 1, 0)


def test_tokens_do_not_join_a_sequence_that_has_changed_meanwhile() -> None:
    sequence = new()
    add(sequence, 2)
    late, few = named(sequence, PAGE), named(sequence, 1)
    add(sequence, 1)
    for refuses in (lambda: sequence.commit(few), lambda: sequence.seal(late), lambda: late.require_right(sequence)):
        with pytest.raises(ConversationError, match="a sequence was changed while its pages were computed"):
            refuses()
    assert sequence.tokens.tolist() == [0, 1, 2]


def test_names_that_are_not_what_the_tokens_give_are_refused() -> None:
    sequence = new()
    found = named(sequence, PAGE)
    found.require_right(sequence)
    found.tokens[0, 1] = 99
    found.require_place(sequence)
    with pytest.raises(ConversationError, match="Use a sequence from one call at a time"):
        found.require_right(sequence)


# Tokens


def test_there_is_room_for_any_number_of_tokens() -> None:
    sequence = new()
    for count in (1000, 25, 3000):
        add(sequence, count, GENERATED)
    assert sequence.tokens.tolist() == [*range(4025)]
    assert sequence.origins.tolist() == [GENERATED] * 4025
    assert sequence.num_from_store == 0


def test_a_sequence_goes_on_with_the_past_of_another() -> None:
    sequence, other = new(), new(71)
    add(sequence, 5)
    other.commit(named(other, 9).first(2), from_store=True)
    sequence.become(other)
    assert (sequence.num_tokens, sequence.past) == (2 * PAGE, other.past)
    again = new()
    add(again, 6)
    again.count_as(sequence)
    assert again.num_from_store == 6


def test_a_saved_sequence_is_restored_into_a_new_one_only() -> None:
    saved, sequence = new(), new()
    add(saved, 6)
    sequence.restore(saved.tokens, saved.origins, saved.chains)
    assert (sequence.tokens.tolist(), sequence.chains) == (saved.tokens.tolist(), saved.chains)
    assert sequence.num_from_store == 6
    with pytest.raises(AssertionError, match="restored into a new one"):
        sequence.restore(saved.tokens, saved.origins, saved.chains)


# Layers


def test_a_step_that_fills_a_page_publishes_it(text: Text) -> None:
    text.read(PAGE + 3)
    new = text.step()
    text.seal(new)
    text.sequence.commit(new)
    assert text.store.num_known(text.sequence.chains, [0]) == len(text.sequence.chains) == 2
    assert text.sequence.layers[0].tail_len == text.sequence.tail_len == 0


@pytest.mark.parametrize("num_layers", [0, 1, 2])
@pytest.mark.parametrize("length", [PAGE + 1, 2 * PAGE - 1])
def test_a_step_is_undone_however_many_layers_took_it(text: Text, length: int, num_layers: int) -> None:
    text.read(length)
    before = held(text.sequence)
    point = StepPoint.before(text.sequence)
    assert (point.snapshot is not None) == (length == 2 * PAGE - 1)
    new = text.step(num_layers)
    if num_layers == 2:
        text.seal(new)
    point.restore(text.sequence)
    assert held(text.sequence) == before


def test_going_back_leads_to_the_past_and_the_layers_of_that_point(text: Text) -> None:
    text.read(PAGE + 2)
    before, past, point = held(text.sequence), text.sequence.past, text.sequence.snapshot()
    text.read(3 * PAGE)
    text.sequence.past = Past(71)
    text.sequence.rollback(point)
    assert text.sequence.past is past
    assert held(text.sequence) == before


def test_a_sequence_is_cut_at_a_page(text: Text) -> None:
    text.sequence.layers.pop()  # a window cannot be cut
    text.read(3 * PAGE + 1)
    chains = text.sequence.chains[:2]
    text.sequence.truncate(2)
    (layer,) = text.sequence.layers
    assert isinstance(layer, TieredLayer)
    assert (text.sequence.num_tokens, text.sequence.chains, len(layer.pids)) == (2 * PAGE, chains, 2)
    assert (layer.tail_len, layer.indexed) == (0, 2 * PAGE)


def test_whoever_follows_a_sequence_goes_on_by_itself(text: Text) -> None:
    text.read(2 * PAGE + 1)
    before, twin = held(text.sequence), text.other()
    twin.follow(text.sequence)
    assert held(twin) == before
    text.read(PAGE)
    assert held(twin) == before
    twin.close()


def test_a_closed_sequence_holds_nothing_and_may_be_closed_again(text: Text) -> None:
    text.read(2 * PAGE + 1)
    for _ in range(2):
        text.sequence.close()
        assert (text.sequence.num_tokens, text.sequence.chains, text.sequence.layers) == (0, [], [])
        assert text.store.host.num_free == text.store.host.num_slots
