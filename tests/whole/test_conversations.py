"""Random conversations agree with a plain list of what was said: transcript, memory, and the next answer.

RUNS conversations at each of two levels of cap; `make conversations` runs 500.
"""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conversation_runs import Run, Trouble, choose_letter, in_two_threads

from stratakv.runtime import KVConfig, Runtime

RUNS = int(os.environ.get("RUNS", "8"))
CAPS = {"ample": 0.05, "tight": 0.0012}


@pytest.fixture(scope="module", params=CAPS)
def runtimes(request: Any, tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Runtime, ...]]:
    """One under test, and one that keeps everything in memory and begins every conversation anew. Both read all."""
    settings: dict[str, Any] = {"index": "bounds", "budget": 4096}
    store = tmp_path_factory.mktemp("kv")
    tested = KVConfig(path=store, host_gb=CAPS[request.param], disk_gb=0.1, **settings)
    with (
        Runtime.load(tiny_llama, dtype="float32", kv=tested) as runtime,
        Runtime.load(tiny_llama, dtype="float32", kv=KVConfig(disk_gb=0, host_gb=0.05, **settings)) as fresh,
    ):
        yield runtime, fresh
        runtime.store.check_integrity()


@pytest.fixture(autouse=True)
def _printable_replies(monkeypatch: pytest.MonkeyPatch) -> None:
    """A random model writes bytes that are no text: only letters can be chosen, so that words say which tokens."""
    monkeypatch.setattr("stratakv.runtime.engine.sampling.Sampler.choose", choose_letter)


def test_conversations_say_what_was_said(runtimes: tuple[Runtime, Runtime]) -> None:
    runtime, fresh = runtimes
    trouble = Trouble(runtime)
    for seed in range(RUNS):
        run, draw = Run(runtime, trouble, seed), random.Random(seed)
        other = Run(runtime, trouble, seed + 1_000_000)
        done = []
        for _ in range(draw.randint(2, 8)):
            operation = draw.choice(Run.ALL)
            done.append(operation.__name__)
            if operation in Run.SAFE and draw.random() < 0.3:
                second = draw.choice(Run.SAFE)
                done[-1] += f" beside {second.__name__}"
                in_two_threads(lambda: operation(run), lambda: second(other))  # noqa: B023
            else:
                operation(run)
        for each in (run, other):
            try:
                each.check(fresh)
            except AssertionError as error:
                raise AssertionError(f"seed {seed}, after {done}: {error}") from error
            each.chat.close()
