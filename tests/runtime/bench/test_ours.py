"""stratakv as a contestant: figures are those of its timed steps, and its store is gone when it is."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bench_runs import TINY, silent

from stratakv.runtime.api.errors import DoesNotFitError
from stratakv.runtime.bench.bandwidths import Bandwidths
from stratakv.runtime.bench.options import BenchOptions, Caps
from stratakv.runtime.bench.ours import Ours
from stratakv.runtime.bench.subject import Subject

EDGES = Bandwidths(memory=1e9, link=1e9, disk=1e9)
PER_TOKEN = 2 * 2 * 8 * 4 * 3
"""Bytes of keys and values in all layers."""
ROOMY = Caps(host_gb=0.05, disk_gb=0)


@pytest.fixture(scope="module")
def subject(tmp_path_factory: pytest.TempPathFactory) -> Subject:
    return Subject.load(BenchOptions(**TINY), tmp_path_factory.mktemp("subject"), 1000, silent)


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path
    assert list(tmp_path.iterdir()) == [], "stores are removed"


def ours(
    subject: Subject, folder: Path, index: str = "bounds", caps: Caps = ROOMY, batch: int = 1, tokens: int = 200,
    prefetch: str = "auto", **options: Any,
) -> Ours:  # fmt: skip
    given = BenchOptions(**{**TINY, **options}, kv_dir=folder)
    return Ours(subject, given, index, caps, batch, tokens, EDGES, prefetch=prefetch)


def test_its_name_says_how_it_differs(subject: Subject, folder: Path) -> None:
    for prefetch, name in (("auto", "host 0.05 GB, disk 0 GB"), ("off", "host 0.05 GB, disk 0 GB, no prefetch")):
        one = ours(subject, folder, prefetch=prefetch)
        one.close()
        assert one.name == f"stratakv bounds ({name})"
        assert one.settings == {"index": "bounds", "weights": "own", "caps": ROOMY.given(), "prefetch": prefetch}


@pytest.mark.parametrize("random_kv", [False, True])
def test_only_timed_steps_count(subject: Subject, folder: Path, random_kv: bool) -> None:
    """`dense` reads all that there is: what a step reads tells which steps were averaged."""
    one = ours(subject, folder, "dense", batch=2)
    prompts = np.stack([subject.tokens(0, 64), subject.tokens(1, 64)])
    one.begin_turn(prompts, random_kv=random_kv)
    one.take_stint([[5, 6]] * 6, untimed=4)
    one.take_stint([[7, 8]] * 3, untimed=1)
    one.end_turn()
    first = one.turns[0].facts
    one.begin_turn(prompts[:, :10], random_kv=False)
    one.take_stint([[5, 6]] * 2, untimed=1)
    one.end_turn()
    second = one.turns[1].facts
    one.close()
    assert first["roofline"]["kv_bytes"] == 2 * PER_TOKEN * np.mean([64 + step for step in (5, 6, 8, 9)])
    assert second["roofline"]["kv_bytes"] == 2 * PER_TOKEN * (64 + 9 + 10 + 2)
    assert (one.turns[0].ttft_s is None) == random_kv
    assert first["roofline"]["weights_bytes"] == subject.read_per_step(4)
    assert (first["tokens_read"], second["tokens_read"]) == (64 + 9, 64 + 9 + 10 + 2)
    for facts, steps in ((first, 4), (second, 1)):
        reads = sum(facts["counters"][f"{tier}_reads"] for tier in ("gpu", "host", "disk"))
        pages = 4 if facts is first else 5
        assert reads == steps * 2 * 3 * pages


def test_what_its_tiers_or_its_window_cannot_hold_is_refused(subject: Subject, folder: Path) -> None:
    with pytest.raises(DoesNotFitError, match="a context of 1001 tokens"):
        ours(subject, folder, tokens=1001)
    ours(subject, folder, tokens=1001, random_kv=True).close()
    small = Caps(host_gb=0.0007, disk_gb=0)
    ours(subject, folder, caps=small, tokens=400).close()
    with pytest.raises(DoesNotFitError, match="2 x 400 tokens"):
        ours(subject, folder, caps=small, batch=2, tokens=400)
