"""A trace holds the decode steps that it was made of, each under its name."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from stratakv.runtime.bench.contestant import Contestant
from stratakv.runtime.bench.trace import trace_steps


class Multiplying(Contestant):
    """Multiplies at every step, and writes down what it was given."""

    def __init__(self) -> None:
        super().__init__(1, {})
        self.given: list[list[int]] = []

    def extend(self, prompts: np.ndarray) -> None: ...

    def fill(self, prompts: np.ndarray) -> None: ...

    def decode(self, tokens: list[int]) -> None:
        self.given.append(tokens)
        torch.mm(torch.ones(4, 4), torch.ones(4, 4))


@pytest.mark.parametrize("name", ["caf\u00e9.json", "steps.json.gz"])
def test_every_step_is_in_it_with_what_it_did(name: str, tmp_path: Path) -> None:
    contestant, path = Multiplying(), tmp_path / name
    trace_steps(contestant, [[3, 4], [5, 6], [7, 8]], path)
    data = path.read_bytes()
    events = json.loads(gzip.decompress(data) if path.suffix == ".gz" else data)["traceEvents"]
    assert contestant.given == [[3, 4], [5, 6], [7, 8]]
    named = [event.get("name") for event in events if event.get("ph") == "X"]
    assert (named.count("decode step"), named.count("aten::mm")) == (3, 3)
    assert list(tmp_path.iterdir()) == [path]


def test_a_trace_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        trace_steps(Multiplying(), [[1]], tmp_path / "no" / "steps.json")
