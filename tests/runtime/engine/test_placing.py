"""What may be kept is divided among layers when all of them have seen the prompt."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from stratakv.retrieval.placement import Facts, Placement, State, Text
from stratakv.retrieval.placement_registry import placement_spec
from stratakv.runtime import KVConfig
from stratakv.runtime.engine import placing
from stratakv.runtime.engine.placing import is_placed, make_placements, place


class ByNumber(Placement):
    """Later layers get more."""

    name = "by number"

    def scores(self, state: State, text: Text) -> Tensor:
        raise AssertionError("nobody asks")

    def divide(self, wishes: Sequence[Tensor], budget: int) -> list[int]:
        return [budget * int(wish) for wish in wishes]


class Layer:
    """Stands for a tiered layer and its placement at once."""

    def __init__(self, number: int, *, is_placed: bool = True) -> None:
        self.placed = self if is_placed else None
        self.placement, self._number = ByNumber(KVConfig().index_params(), number, None), number
        self.given: tuple[int, int] | None = None

    @property
    def kept(self) -> Any:
        return type("Kept", (), {"budget": self.given})

    def read(self, tokens: np.ndarray) -> None:
        self.tokens = tokens

    def wish(self) -> Tensor:
        return torch.tensor(self._number)

    def place(self, budget: int, length: int) -> None:
        self.given = budget, length


def test_each_layer_gets_what_all_wishes_together_give(monkeypatch: Any) -> None:
    monkeypatch.setattr(placing, "tiered_layers", lambda layers: layers)
    layers = [Layer(1), Layer(2, is_placed=False), Layer(3)]
    assert not is_placed(cast("Any", layers))
    place(cast("Any", layers), placement_spec("h2o:keep=0.1"), np.arange(1000))
    assert [layer.given for layer in layers] == [(100, 1000), None, (300, 1000)]
    assert is_placed(cast("Any", layers))
    place(cast("Any", layers), placement_spec("h2o:keep=50"), np.arange(1000))
    assert [layer.given for layer in layers] == [(50, 0), None, (150, 0)]


def test_each_tiered_layer_has_its_own() -> None:
    facts = Facts(repeats=7)
    made = make_placements([0, 5], KVConfig(placement="snapkv:window=8"), lambda kind: facts)
    assert [(layer, one.name, one.layer, one.options.window, one.facts) for layer, one in made.items()] == [
        (0, "snapkv", 0, 8, facts), (5, "snapkv", 5, 8, facts),
    ]  # fmt: skip
    assert make_placements([0, 5], KVConfig(), lambda kind: facts) == {}
