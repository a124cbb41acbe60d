"""What the suites stand on: one prefill whose forks know what a chat's index knows."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from tiny_models import VOCABULARY, save_tiny_model
from torch import Tensor

from stratakv.retrieval.indexes.bounds import BoundsIndex
from stratakv.runtime import KVConfig, Runtime
from stratakv.runtime.engine.sequence import GENERATED, PROMPT, Sequence
from stratakv.runtime.evaluation.harness import Harness, index_bytes
from stratakv.runtime.evaluation.variants import Variant
from stratakv.runtime.layers.tiered import TieredLayer

TOKENS = np.random.default_rng(5).integers(3, VOCABULARY, 760).astype(np.uint32)
PAST, KNOWN = TOKENS[:700], TOKENS[700:]
SMALL, MIDDLE, LARGE = (Variant("bounds", budget) for budget in (0.2, 176, 240))
ORACLE, DENSE = Variant("oracle", 176), Variant("dense", 176)
Harnesses = Callable[[], Harness]


@pytest.fixture(scope="module")
def runtime(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runtime]:
    folder = tmp_path_factory.mktemp("harness")
    with Runtime.load(
        save_tiny_model(folder / "model"), dtype="float32", kv=KVConfig(path=folder / "kv", disk_gb=0)
    ) as runtime:
        yield runtime
        runtime.store.check_integrity()
        assert not runtime.store.host.used_bytes - runtime.store.host.reserved_bytes


@pytest.fixture
def harness(runtime: Runtime) -> Harness:
    return Harness(runtime, [DENSE, SMALL, MIDDLE, LARGE, ORACLE])


@pytest.fixture
def fits(monkeypatch: pytest.MonkeyPatch) -> list[Tensor | None]:
    """The queries of every `BoundsIndex.fit`; the index says it learns from them."""
    found: list[Tensor | None] = []
    fit = BoundsIndex.fit

    def noting(self: BoundsIndex, keys: Tensor, positions: Tensor, queries: Tensor | None = None, *rest: Any) -> Any:
        found.append(queries)
        return fit(self, keys, positions, queries, *rest)

    monkeypatch.setattr(BoundsIndex, "uses_queries", True)
    monkeypatch.setattr(BoundsIndex, "fit", noting)
    return found


def tiered(sequence: Sequence) -> list[TieredLayer]:
    return [layer for layer in sequence.layers if isinstance(layer, TieredLayer)]


# One prefill, states built once


def test_states_are_built_once_for_all_budgets(harness: Harness, fits: list[Tensor | None]) -> None:
    with harness.prefilled(PAST) as base:
        for variant in harness.variants * 2:
            with harness.fork(variant, base) as fork:
                harness.read(variant, fork, KNOWN)
    assert len(fits) == harness.runtime.model.num_layers


def test_forks_of_several_budgets_do_not_disturb_each_other(harness: Harness) -> None:
    """Each reads as if it were alone, whatever the others appended to their states."""
    alone = []
    for variant in (SMALL, LARGE):
        with harness.prefilled(PAST) as base, harness.fork(variant, base) as fork:
            alone.append(harness.read(variant, fork, KNOWN))
    with (
        harness.prefilled(PAST) as base,
        harness.fork(SMALL, base) as small,
        harness.fork(MIDDLE, base) as middle,
    ):
        found = [harness.read(SMALL, small, KNOWN)]
        harness.read(MIDDLE, middle, KNOWN[::-1].copy())
        with harness.fork(LARGE, base) as large:
            found.append(harness.read(LARGE, large, KNOWN))
    assert not torch.equal(*alone)
    assert torch.equal(found[0], alone[0])
    assert torch.equal(found[1], alone[1])


def test_a_context_that_was_extended_is_indexed_to_its_end(harness: Harness) -> None:
    with harness.prefilled(PAST) as base:
        with harness.fork(MIDDLE, base) as early:
            assert early.num_tokens == len(PAST)
        harness.extend(base, KNOWN[:40])
        with harness.fork(MIDDLE, base) as fork:
            assert {layer.indexed for layer in tiered(fork)} == {736}
            found = harness.read(MIDDLE, fork, KNOWN[40:])
    own = harness.engines[MIDDLE].new_sequence()
    for piece in (PAST, KNOWN[:40]):
        harness.extend(own, piece)
    assert torch.equal(found, harness.read(MIDDLE, own, KNOWN[40:]))
    own.close()


def test_a_fork_knows_the_queries_that_its_own_prefill_would_have_seen(
    runtime: Runtime, fits: list[Tensor | None]
) -> None:
    harness = Harness(runtime, [MIDDLE])
    own = harness.engines[MIDDLE].new_sequence()
    harness.extend(own, PAST)
    expected = [queries for queries in fits if queries is not None]
    own.close()
    fits.clear()
    with harness.prefilled(PAST) as base, harness.fork(MIDDLE, base):
        found = [queries for queries in fits if queries is not None]
    assert len(found) == len(expected) == runtime.model.num_layers
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.shape == (2, 3, len(PAST) // 16, 8)
        assert torch.equal(ours, theirs)


def test_queries_are_known_although_the_store_knows_the_pages(runtime: Runtime, fits: list[Tensor | None]) -> None:
    harness = Harness(runtime, [MIDDLE])
    with harness.prefilled(PAST), harness.prefilled(PAST) as again, harness.fork(MIDDLE, again):
        assert len(fits) == runtime.model.num_layers
        assert all(queries is not None for queries in fits)


def test_queries_are_kept_of_the_pages_that_are_there(runtime: Runtime) -> None:
    engine = runtime.engine
    sequence, other = engine.new_sequence(keep_queries=True), engine.new_sequence(keep_queries=True)
    engine.prefill(sequence, PAST, reuse=False)
    start = sequence.snapshot()
    engine.decode_known(sequence, KNOWN)
    sequence.rollback(start)
    engine.decode_known(sequence, KNOWN[:40])
    engine.prefill(other, PAST)  # its pages come from the store
    for layer in tiered(sequence):
        assert layer.upkeep.queries.kept is not None
        assert sum(queries.shape[2] for queries in layer.upkeep.queries.kept) == len(layer.pids) == 46
    assert all(layer.upkeep.queries.kept is None for layer in tiered(other))
    sequence.close()
    other.close()


def test_an_index_without_use_for_queries_costs_nothing_to_keep(harness: Harness) -> None:
    with harness.prefilled(PAST) as base:
        assert all(layer.upkeep.queries.kept is None for layer in tiered(base))


# Conversations and costs


def test_a_users_words_are_read_exactly_and_replies_through_the_index(harness: Harness) -> None:
    turns = [("Who are you?", " I am."), ("And who am I?", " You are.")]
    with harness.prefilled(harness.opening("A long story. " * 40)) as base, harness.fork(MIDDLE, base) as fork:
        before = base.num_tokens
        harness.hear(MIDDLE, fork, turns)
        tokens, origins = fork.tokens[before:], fork.origins[before:]
        text = harness.runtime.tokenizer.decode(tokens[origins == GENERATED].tolist())
        assert text == "".join(reply for _, reply in turns)
        text = harness.runtime.tokenizer.decode(tokens[origins == PROMPT].tolist())
        assert text.startswith("\nWho are you?<|im_end|>\n<|im_start|>assistant\n")
        assert "<|im_start|>user\nAnd who am I?<|im_end|>" in text


def test_index_bytes_are_per_token_and_head(harness: Harness) -> None:
    with harness.prefilled(PAST) as base:
        found = {}
        for variant in (DENSE, MIDDLE, ORACLE):
            with harness.fork(variant, base) as fork:
                found[variant.index] = index_bytes(fork)
    assert {name: kept["index_bytes"] for name, kept in found.items()} == {"dense": 0, "bounds": 4, "oracle": 32}
    assert all(kept["index_fixed_bytes"] == 0 for kept in found.values()), "they learn nothing"
    empty = harness.engines[MIDDLE].new_sequence()
    assert index_bytes(empty) == {"index_bytes": 0, "index_fixed_bytes": 0}
    empty.close()
