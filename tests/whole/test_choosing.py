"""Layers that choose for others: each token is read as the last layer before chose for it, whatever happens between.

Beside a naive computation: the layer's own queries and keys, one softmax over all of them, and a sorted list.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from tiny_models import VOCABULARY, save_tiny_model
from torch import Tensor

from stratakv.runtime import KVConfig, Runtime
from stratakv.runtime.engine.engine import Engine
from stratakv.runtime.engine.sequence import Sequence
from stratakv.runtime.layers.paged import PagedLayer, paged_layers
from stratakv.runtime.layers.step import Step
from stratakv.runtime.sessions import session

PAGE, SINK, LOCAL, BUDGET = 8, 3, 9, 56
TOKENS = np.random.default_rng(3).integers(3, VOCABULARY, 130).astype(np.uint32)
PAST, KNOWN, ROUND = TOKENS[:112], TOKENS[112:], 85
"""Rounds begin at 0 and at `ROUND`."""
Read = dict[tuple[int, int], tuple[list[list[int]], list[list[int]] | None]]
"""By layer and length of the text: tokens that a step read of each KV head, and what it would choose for others."""


class Case(NamedTuple):
    index: str
    choosing: dict[int, int | None]
    """By each layer of the model that has pages: the layer that chooses for it; None: it reads everything."""
    model: dict[str, Any]
    family: str = "llama"


SIX = {"num_hidden_layers": 6}
SHARED = {
    "num_hidden_layers": 10,
    "num_kv_shared_layers": 4,
    "layer_types": ["sliding_attention", "full_attention"] * 5,
}
CASES = [
    Case("tidal:first=1:again=3", {0: None, 1: None, 2: 1, 3: None, 4: 3, 5: 3}, SIX),
    Case("delta:first=2:middle=3:late=4:recent=3", {0: None, 1: None, 2: 1, 3: None, 4: None, 5: 4}, SIX),
    Case("rounds:watershed=2:share=0.5", {0: None, 1: None, 2: None, 3: 2, 4: 2, 5: 2}, SIX),
    Case("tidal", {1: None, 3: None, 5: 3, 7: 3, 9: 3}, SHARED, "gemma4_text-shared"),
    Case("tidal:first=2:again=2", {1: None, 3: None, 5: None, 7: 5, 9: 5}, SHARED, "gemma4_text-shared"),
]


@pytest.fixture(scope="module", params=CASES, ids=lambda case: f"{case.family}-{case.index}")
def opened(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Engine, Case]]:
    case, folder = request.param, tmp_path_factory.mktemp("choosing")
    model = save_tiny_model(folder / "model", case.family, **case.model)
    kv = KVConfig(
        path=folder / "kv", index=case.index, budget=BUDGET, sink=SINK, local=LOCAL, page_size=PAGE, host_gb=0.05,
        disk_gb=0.1,
    )  # fmt: skip
    with Runtime.load(model, dtype="float32", kv=kv) as runtime:
        yield runtime.engine, case
        runtime.store.check_integrity()


@pytest.fixture
def sequences(opened: tuple[Engine, Case]) -> Iterator[Callable[[int], Sequence]]:
    made = []

    def of(length: int) -> Sequence:
        made.append(opened[0].new_sequence())
        opened[0].prefill(made[-1], PAST[:30])
        opened[0].decode_known(made[-1], PAST[30:ROUND])
        opened[0].prefill(made[-1], PAST[ROUND:length])
        assert made[-1].past.choices.rounds == [ROUND]
        return made[-1]

    yield of
    for sequence in made:
        sequence.close()


def chosen_naively(index: str, layer: PagedLayer, step: Step) -> list[list[int]]:
    """Of each KV head, by a softmax over all sealed tokens and the open page."""
    keys = torch.cat([layer.reader.block(0, layer.sealed)[0], layer.tail[0]], 1).double()
    weights = torch.softmax(step.query.double() @ keys.transpose(1, 2) * step.scale, -1)[..., : layer.sealed]
    room = BUDGET - layer.tail_len
    if index.startswith("tidal"):
        forced = {*range(SINK), *range(layer.sealed - LOCAL, layer.sealed)}
        return [best(row.sum(0), forced, room) for row in weights]
    if index.startswith("rounds"):
        forced, worth = {*range(SINK), *range(layer.sealed - LOCAL, layer.sealed)}, weights.mean((0, 1))
        assert worth[ROUND:].sum() < worth.sum() / 2, "both rounds are wanted, and the first one does not fit"
        return [best(worth, forced | set(range(ROUND, layer.sealed)), room)] * len(keys)
    pages = layer.sealed // PAGE
    of_pages = weights.amax((0, 1)).view(pages, PAGE).sum(1)
    kept = best(of_pages, {0, pages - 3, pages - 2, pages - 1}, room // PAGE)
    return [[page * PAGE + at for page in kept for at in range(PAGE)]] * len(keys)


def best(worth: Tensor, forced: set[int], count: int) -> list[int]:
    others = sorted((at for at in range(len(worth)) if at not in forced), key=lambda at: -float(worth[at]))
    return sorted(forced | set(others[: count - len(forced)]))


def watched(sequence: Sequence, case: Case) -> Read:
    read: Read = {}

    def note(layer: PagedLayer, step: Step) -> None:
        assert step.ids is not None
        tokens = (step.ids[..., None] * step.unit + np.arange(step.unit)).reshape(len(step.ids), -1).tolist()
        is_whole = case.choosing[layer.layer] is None
        read[layer.layer, layer.sealed + layer.tail_len] = (
            tokens, chosen_naively(case.index, layer, step) if is_whole else None,
        )  # fmt: skip

    for layer in paged_layers(sequence.layers):
        layer.watch = note
    return read


def check(read: Read, case: Case, lengths: range) -> None:
    assert read.keys() == {(layer, length) for layer in case.choosing for length in lengths}
    for (layer, length), (tokens, _) in read.items():
        by = case.choosing[layer]
        expected = [list(range(length // PAGE * PAGE))] * 2 if by is None else read[by, length][1]
        # a step that fills a page reads it as the open one
        sealed = (length - 1) // PAGE * PAGE
        assert tokens == ([row[:sealed] for row in expected] if by is None else expected), (layer, length)


def test_a_token_is_read_as_the_last_layer_chose_for_it(
    opened: tuple[Engine, Case], sequences: Callable[[int], Sequence]
) -> None:
    """One by one, and where each layer has all tokens at once before the next one has any."""
    engine, case = opened
    one, other = sequences(len(PAST)), sequences(len(PAST))
    read, at_once = watched(one, case), watched(other, case)
    expected = torch.cat([engine.decode([one], [token]) for token in KNOWN.tolist()])
    found = engine.decode_known(other, KNOWN)
    lengths = range(len(PAST) + 1, len(TOKENS) + 1)
    for each in (read, at_once):
        check(each, case, lengths)
    assert {key: tokens for key, (tokens, _) in read.items()} == {key: tokens for key, (tokens, _) in at_once.items()}
    assert (found - expected).abs().max() <= 1e-4 * expected.abs().max()


def test_sequences_of_a_batch_have_choices_of_their_own(
    opened: tuple[Engine, Case], sequences: Callable[[int], Sequence]
) -> None:
    engine, case = opened
    batch, lengths = [sequences(length) for length in (len(PAST), 90)], (len(PAST), 90)
    reads = [watched(sequence, case) for sequence in batch]
    engine.decode(batch, [5, 7])
    for read, length in zip(reads, lengths, strict=True):
        check(read, case, range(length + 1, length + 2))


def test_a_step_that_failed_a_fork_and_a_session_go_on_with_nothing_of_it(
    opened: tuple[Engine, Case], sequences: Callable[[int], Sequence], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, case = opened
    sequence = sequences(len(PAST))
    monkeypatch.setattr(PagedLayer, "_tell", fails_in(max(case.choosing)))
    with pytest.raises(RuntimeError, match="fails"):
        engine.decode([sequence], [9])
    monkeypatch.undo()
    assert sequence.past.choices.newest is None
    expected = engine.decode([sequence], [5])
    assert sequence.past.choices.newest is None
    session.save(engine, sequence, "choosing", {})
    again = session.load(engine, "choosing")[0]
    fork, read = engine.fork(sequence), watched(again, case)
    found = [engine.decode([each], [7]) for each in (sequence, fork, again)]
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])
    check(read, case, range(len(PAST) + 2, len(PAST) + 3))
    fresh = sequences(len(PAST))
    assert torch.equal(engine.decode([fresh], [5]), expected)
    fork.close()
    again.close()


def fails_in(number: int) -> Callable[..., None]:
    def tell(layer: PagedLayer, *_: Any) -> None:
        if layer.layer == number:
            raise RuntimeError("fails")

    return tell
