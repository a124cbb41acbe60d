"""One prefill, many readers: forks under another index, and known tokens through the decode path."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from tiny_models import VOCABULARY, save_tiny_model

from stratakv.runtime import KVConfig, Runtime
from stratakv.runtime.engine.engine import Engine
from stratakv.runtime.engine.sequence import Sequence
from stratakv.runtime.evaluation.harness import Harness
from stratakv.runtime.evaluation.variants import Variant
from stratakv.runtime.layers.tiered import TieredLayer

TOKENS = np.random.default_rng(3).integers(3, VOCABULARY, 760).astype(np.uint32)
PAST, KNOWN = TOKENS[:700], TOKENS[700:]
VARIANTS = [Variant(index, 144) for index in ("dense", "bounds", "oracle", "window")]


@pytest.fixture(scope="module", params=["llama", "gemma3_text"])
def harness(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Harness]:
    folder = tmp_path_factory.mktemp(request.param)
    model = save_tiny_model(folder / "model", request.param)
    with Runtime.load(model, dtype="float32", kv=KVConfig(path=folder / "kv", disk_gb=0)) as runtime:
        yield Harness(runtime, VARIANTS)
        runtime.store.check_integrity()


def decoded(engine: Engine, sequence: Sequence) -> torch.Tensor:
    return torch.stack([engine.decode([sequence], [token])[0] for token in KNOWN.tolist()])


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda variant: variant.index)
def test_a_fork_reads_as_if_it_had_prefilled_itself(harness: Harness, variant: Variant) -> None:
    engine = harness.engines[variant]
    base, own = harness.runtime.engine.new_sequence(), engine.new_sequence()
    for sequence in (base, own):
        harness.extend(sequence, PAST)
    with harness.fork(variant, base) as fork:
        assert fork.tokens.tolist() == own.tokens.tolist()
        assert torch.equal(decoded(engine, fork), decoded(engine, own))
        assert base.num_tokens == len(PAST)
    base.close()
    own.close()


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda variant: variant.index)
def test_known_tokens_at_once_equal_one_by_one(harness: Harness, variant: Variant) -> None:
    engine = harness.engines[variant]
    with (
        harness.prefilled(PAST) as base,
        harness.fork(variant, base) as one,
        harness.fork(variant, base) as other,
        harness.fork(variant, other) as third,
    ):
        expected = decoded(engine, one)
        found = engine.decode_known(other, KNOWN)
        halves = torch.cat([engine.decode_known(third, KNOWN[:25]), engine.decode_known(third, KNOWN[25:])])
        for logits in (found, halves):
            assert (logits - expected).abs().max() <= 1e-4 * expected.abs().max()
        for sequence in (other, third):
            assert sequence.chains == one.chains
            assert sequence.origins.tolist() == one.origins.tolist()


def test_sparse_indexes_read_differently(harness: Harness) -> None:
    """The equalities above would hold for an engine that ignores its index; this one does not."""
    with harness.prefilled(PAST) as base:
        found = []
        for variant in VARIANTS:
            with harness.fork(variant, base) as fork:
                found.append(harness.read(variant, fork, KNOWN))
    assert not torch.equal(found[0], found[1])
    assert not torch.equal(found[1], found[2])
    assert not torch.equal(found[2], found[3])


def test_no_tokens_are_refused(harness: Harness) -> None:
    with harness.prefilled(PAST) as base, pytest.raises(ValueError, match="at least one token"):
        harness.engines[VARIANTS[0]].decode_known(base, KNOWN[:0])


def test_known_tokens_that_cannot_be_read_leave_the_sequence_alone(
    harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    variant = VARIANTS[1]
    engine, seal = harness.engines[variant], TieredLayer.seal
    with harness.prefilled(PAST) as base, harness.fork(variant, base) as one, harness.fork(variant, base) as other:
        sealed = []

        def failing(self: TieredLayer, chain: bytes, tokens: np.ndarray) -> None:
            seal(self, chain, tokens)
            sealed.append(self.layer)
            if len(sealed) == 2:
                raise OSError("no more room")

        monkeypatch.setattr(TieredLayer, "seal", failing)
        with pytest.raises(OSError, match="no more room"):
            engine.decode_known(one, KNOWN)
        monkeypatch.undo()
        assert one.num_tokens == len(PAST)
        assert torch.equal(engine.decode_known(one, KNOWN), engine.decode_known(other, KNOWN))
