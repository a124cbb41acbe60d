"""The probe's figures are those of each step by itself, whichever way the steps are taken."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_models import VOCABULARY

from stratakv.runtime import KVConfig, Runtime
from stratakv.runtime.evaluation.harness import Harness
from stratakv.runtime.evaluation.probe import Probe
from stratakv.runtime.evaluation.variants import Variant
from stratakv.runtime.layers.step import Step
from stratakv.runtime.layers.tiered import TieredLayer, tiered_layers

TOKENS = np.random.default_rng(5).integers(3, VOCABULARY, 760).astype(np.uint32)
PAST, KNOWN = TOKENS[:700], TOKENS[700:]
SMALL, MIDDLE = Variant("bounds", 0.2), Variant("bounds", 176)
ORACLE, DENSE = Variant("oracle", 176), Variant("dense", 176)


@pytest.fixture(scope="module")
def runtime(tiny_llama: Path) -> Iterator[Runtime]:
    with Runtime.load(tiny_llama, dtype="float32", kv=KVConfig(host_gb=0.2, disk_gb=0)) as runtime:
        yield runtime
        runtime.store.check_integrity()


@pytest.fixture
def harness(runtime: Runtime) -> Harness:
    return Harness(runtime, [DENSE, SMALL, MIDDLE, ORACLE])


class Slow:
    """The probe's figures, one step at a time and written out."""

    def __init__(self, every: int) -> None:
        self.every = every
        self.mass: list[float] = []
        self.error: list[float] = []
        self.recall: list[float] = []

    def see(self, layer: TieredLayer, step: Step) -> None:
        length = layer.sealed + layer.tail_len
        if step.ids is None or length % self.every:
            return
        stored = layer.reader.block(0, layer.sealed)
        keys, values = (torch.cat([some, tail], 1) for some, tail in zip(stored, layer.tail, strict=True))
        for head in range(len(keys)):
            read = {int(unit) * step.unit + i for unit in step.ids[head] for i in range(step.unit)}
            scores = step.query[head] @ keys[head].T * step.scale
            weights = scores.softmax(-1)
            seen = [*sorted(read), *range(layer.sealed, length)]
            self.mass += weights[:, seen].sum(-1).tolist()
            full = weights @ values[head]
            self.error += ((step.out[head] - full).norm(dim=-1) / full.norm(dim=-1)).tolist()
            rank = scores[:, : layer.sealed].softmax(-1).mean(0)[16 : layer.sealed - 64]
            best = rank.argsort(descending=True)[: len(read) - 80] + 16
            self.recall.append(len(read & set(best.tolist())) / len(best))


@pytest.mark.parametrize("variant", [SMALL, ORACLE, DENSE], ids=lambda variant: variant.label)
def test_the_probe_measures_what_it_says(harness: Harness, variant: Variant) -> None:
    slow = Slow(every=7)
    with harness.prefilled(PAST) as base, harness.fork(variant, base) as watched, harness.fork(variant, base) as other:
        for layer in tiered_layers(watched.layers):
            layer.watch = slow.see
        harness.read(variant, watched, KNOWN)
        probe = Probe(every=7)
        probe.attach(other)
        harness.read(variant, other, KNOWN)
        found = probe.result()
    assert found["mass"] == pytest.approx(np.mean(slow.mass), abs=1e-5)
    assert found["output_error"] == pytest.approx(np.mean(slow.error), abs=1e-5)
    assert found["recall"] == pytest.approx(np.mean(slow.recall), abs=0.01)  # near ties
    assert probe.result() == found


def test_the_probe_sees_the_same_steps_one_by_one(harness: Harness) -> None:
    """Layer after layer, and token after token, are the same steps in another order."""
    results = []
    for at_once in (True, False):
        probe = Probe(every=7)
        with harness.prefilled(PAST) as base, harness.fork(MIDDLE, base) as fork:
            probe.attach(fork)
            if at_once:
                harness.read(MIDDLE, fork, KNOWN)
            else:
                for token in KNOWN.tolist():
                    harness.engines[MIDDLE].decode([fork], [token])
            results.append(probe.result())
    assert results[0] == pytest.approx(results[1], rel=1e-3)


def test_a_probe_that_looks_at_no_step_counts_what_was_read(harness: Harness) -> None:
    probe = Probe(every=None)
    assert probe.result() == {}
    with harness.prefilled(PAST) as base, harness.fork(MIDDLE, base) as fork:
        probe.attach(fork)
        harness.read(MIDDLE, fork, KNOWN[:8])
        found = probe.result()
    assert found.keys() == {"tokens_read"}
    assert 0 <= 176 - found["tokens_read"] < 16, "whole pages, and no more than the budget"
