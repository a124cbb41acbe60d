"""Each tiered layer has an index of its own, which knows that layer's positions and what was learned about it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from profiles import a2ats_profile

from stratakv.runtime import KVConfig
from stratakv.runtime.engine.indexes import make_indexes
from stratakv.runtime.model.model import Model


@pytest.fixture(scope="module")
def model(tiny_llama: Path) -> Model:
    return Model.load(tiny_llama, torch.device("cpu"), torch.float32)


def test_a_layer_with_a_window_has_none(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model, "tiered", [0, 2])
    indexes = make_indexes(model, KVConfig(index="shadowkv:rank=5", sink=3, local=7, page_size=8), {})
    assert [index.layer.number for index in indexes] == [0, 2]
    assert {(index.name, index.options.rank) for index in indexes} == {("shadowkv", 5)}
    assert {(p.page_size, p.sink, p.local) for p in (index.params for index in indexes)} == {(8, 3, 7)}


def test_an_index_turns_keys_as_its_layer_does(model: Model) -> None:
    (index, *_) = make_indexes(model, KVConfig(index="shadowkv"), {})
    keys, positions = torch.randn(model.num_kv_heads, 8, model.head_dim), torch.arange(20, 28)
    expected = model.rotate(0, keys[None], keys[None], model.tables(20, 28, 0))[1][0]
    torch.testing.assert_close(index.layer.rotation.rotate(keys, positions), expected)


def test_a_profile_is_known_to_its_own_layer(model: Model) -> None:
    profile = {layer: a2ats_profile((2, 3, 8), 16 + layer) for layer in model.tiered}
    indexes = make_indexes(model, KVConfig(index="a2ats"), profile)
    for index in indexes:
        known, own = index.layer.profile, profile[index.layer.number]
        assert known is not None
        assert known.keys() == own.keys()
        assert all(torch.equal(known[name], own[name]) for name in own)
    assert [index.layer.profile for index in make_indexes(model, KVConfig(index="bounds"), {})] == [None] * 3


def test_an_index_that_needs_a_profile_is_not_made_without(model: Model) -> None:
    with pytest.raises(ValueError, match="'a2ats' needs a profile of the model; make one with: stratakv calibrate"):
        make_indexes(model, KVConfig(index="a2ats"), {})
