"""transformers as a contestant reads all that it holds at every step, in the bytes that its cache keeps."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from bench_runs import TINY, silent

from stratakv.runtime.bench import transformers_side
from stratakv.runtime.bench.bandwidths import Bandwidths
from stratakv.runtime.bench.contestant import LeftOutError
from stratakv.runtime.bench.options import BenchOptions
from stratakv.runtime.bench.roofline import Traffic
from stratakv.runtime.bench.subject import Subject
from stratakv.runtime.bench.transformers_side import Offloaded, Quantised, Transformers, needed_bytes

EDGES = Bandwidths(memory=1e9, link=1e9, disk=1e9)
PER_TOKEN = 2 * 2 * 8 * 4 * 3
"""Bytes of keys and values in all layers."""


@pytest.fixture(scope="module")
def subject(tmp_path_factory: pytest.TempPathFactory) -> Subject:
    return Subject.load(BenchOptions(**TINY), tmp_path_factory.mktemp("subject"), 200, silent)


@pytest.mark.parametrize("random_kv", [False, True])
def test_a_turn_reads_what_was_held_at_its_timed_steps(subject: Subject, random_kv: bool) -> None:
    one = Transformers(subject, subject.reference(torch.float32), 2, EDGES)
    prompts = np.stack([subject.tokens(0, 64), subject.tokens(1, 64)])
    one.begin_turn(prompts, random_kv=random_kv)
    one.take_stint([[5, 6]] * 6, untimed=4)
    one.take_stint([[7, 8]] * 3, untimed=1)
    one.end_turn()
    one.begin_turn(prompts[:, :10], random_kv=False)
    one.take_stint([[5, 6]] * 2, untimed=1)
    one.end_turn()
    held = one._cache.get_seq_length()
    one.close()
    first, second = (turn.facts["roofline"] for turn in one.turns)
    assert held == 64 + 9 + 10 + 2
    assert first["kv_bytes"] == 2 * PER_TOKEN * np.mean([64 + step for step in (5, 6, 8, 9)])
    assert second["kv_bytes"] == 2 * PER_TOKEN * held
    assert first["weights_bytes"] == subject.read_per_step(4)
    assert (one.name, one.settings) == ("transformers dense float32", {"baseline": "dense", "dtype": "float32"})


@pytest.mark.parametrize(("kind", "link", "kv"), [(Transformers, 0, 800), (Offloaded, 800, 800), (Quantised, 0, 100)])
def test_bytes_cross_the_edges_that_a_cache_is_behind(
    kind: type[Transformers], link: int, kv: int, subject: Subject, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of 800 bytes in fp32, 4 bits a number are left."""
    monkeypatch.setattr(kind, "new_cache", Transformers.new_cache)
    one = kind(subject, subject.reference(torch.float32), 1, EDGES)
    assert one.traffic(800) == Traffic(weights=subject.read_per_step(4), kv=kv, link=link)


def test_who_cannot_take_part_says_why(subject: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    reference = subject.reference(torch.float32)
    with pytest.raises(LeftOutError, match="offloads to the host from a CUDA device only"):
        Offloaded(subject, reference, 1, EDGES)
    monkeypatch.setattr(transformers_side, "_BACKENDS", (("quanto", "no_such.quanto"), ("hqq", "no_such_hqq")))
    with pytest.raises(LeftOutError, match="needs optimum-quanto or hqq"):
        Quantised(subject, reference, 1, EDGES)


def test_weights_and_the_whole_cache_are_in_memory_at_once(subject: Subject) -> None:
    assert needed_bytes(subject, torch.float32, 1, 1000) == subject.weights_bytes + 1000 * PER_TOKEN
    assert needed_bytes(subject, torch.bfloat16, 2, 500) == subject.weights_bytes + 1000 * PER_TOKEN // 2
    subject.model.windows[1], subject.model.states[2] = 100, {"columns": (3, 8)}
    assert needed_bytes(subject, torch.float32, 2, 1000) == subject.weights_bytes + 2 * (1000 + 100) * PER_TOKEN // 3
