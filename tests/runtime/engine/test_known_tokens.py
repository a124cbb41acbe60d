"""Known tokens are appended as decode would append them, or nothing of them is."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from tiny_models import VOCABULARY, moved, save_tiny_model

from stratakv.runtime import KVConfig, Runtime
from stratakv.runtime.api.errors import ConversationError
from stratakv.runtime.engine.engine import Engine
from stratakv.runtime.engine.known_tokens import append_known
from stratakv.runtime.engine.sequence import GENERATED, PROMPT, Sequence

TOKENS = np.random.default_rng(3).integers(3, VOCABULARY, 80).astype(np.uint32)
PAST, KNOWN = TOKENS[:61], TOKENS[61:]


@pytest.fixture(scope="module", params=["llama", "gemma4_text-shared"])
def engine(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    """Of a model all of whose layers have keys, and of one some of whose layers share."""
    kv = KVConfig(index="bounds", budget=40, sink=8, local=8, page_size=8, disk_gb=0, host_gb=0.05)
    folder = moved(save_tiny_model(tmp_path_factory.mktemp("model"), request.param), 0.3)
    with Runtime.load(folder, dtype="float32", kv=kv) as runtime:
        yield runtime.engine
        runtime.store.check_integrity()


@pytest.fixture
def sequences(engine: Engine) -> Iterator[tuple[Sequence, Sequence]]:
    """Two with the same past."""
    one = engine.new_sequence()
    engine.prefill(one, PAST)
    other = engine.fork(one)
    yield one, other
    one.close()
    other.close()


def appended(
    engine: Engine, sequence: Sequence, tokens: np.ndarray = KNOWN, check: Callable[[], object] = lambda: None
) -> torch.Tensor:
    with engine.turn(), torch.inference_mode():
        return append_known(engine.model, sequence, tokens, check)


def test_at_once_they_are_what_they_are_one_by_one(engine: Engine, sequences: tuple[Sequence, Sequence]) -> None:
    """Over the ends of several pages; more is there than is read."""
    one, other = sequences
    expected = torch.cat([engine.decode([one], [token]) for token in KNOWN.tolist()])
    found = torch.cat([appended(engine, other, KNOWN[:10]), appended(engine, other, KNOWN[10:])])
    assert (found - expected).abs().max() <= 1e-4 * expected.abs().max()
    assert (other.tokens.tolist(), other.chains) == (one.tokens.tolist(), one.chains)
    assert other.origins.tolist() == [PROMPT] * len(PAST) + [GENERATED] * len(KNOWN)
    assert engine.store.num_known(other.chains, engine.model.tiered) == len(TOKENS) // 8


def test_whoever_stops_it_between_layers_can_go_back(engine: Engine, sequences: tuple[Sequence, Sequence]) -> None:
    one, other = sequences
    point, asked = one.snapshot(), list[int]()

    def check() -> None:
        asked.append(len(asked))
        if len(asked) == engine.model.num_layers:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        appended(engine, one, check=check)
    assert one.num_tokens == len(PAST)
    engine.rollback(one, point)
    assert torch.equal(appended(engine, one), appended(engine, other))


def test_a_sequence_that_changes_meanwhile_gets_none_of_them(
    engine: Engine, sequences: tuple[Sequence, Sequence]
) -> None:
    one, _ = sequences
    point = one.snapshot()

    def change() -> None:
        if one.num_tokens == len(PAST):
            one.commit(one.name_pages(KNOWN[:1], PROMPT))

    with pytest.raises(ConversationError, match="a sequence was changed while its pages were computed"):
        appended(engine, one, check=change)
    assert one.num_tokens == len(PAST) + 1
    engine.rollback(one, point)
