"""Decode has a compiled form where the model, the cache and the machine allow it and nobody has switched it off."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from compiled_steps import decoded, opened, prompted
from kv_pages import SMALL, store_on

from stratakv.kernels.compiled.sharpen import sharpen
from stratakv.runtime.engine.compiled_form import compiled_step
from stratakv.runtime.engine.compiled_step import CompiledStep
from stratakv.runtime.model.head import Head
from stratakv.runtime.model.model import Model
from stratakv.runtime.model.products import Product
from stratakv.runtime.process import compiled
from stratakv.storage import TieredStore


@pytest.fixture(scope="module")
def model(tiny_llama: Path) -> Model:
    return Model.load(tiny_llama, torch.device("cpu"), torch.float32)


@pytest.fixture
def store() -> Iterator[TieredStore]:
    store = store_on(None, SMALL, host=2)
    yield store
    store.close()


@pytest.fixture(autouse=True)
def ahead(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """Compiled steps are switched on. What is compiled ahead for a model alone is told here."""
    told: list[object] = []
    monkeypatch.setenv(compiled.SWITCH, "1")
    monkeypatch.setattr(compiled, "ahead", told.append)
    return told


def test_a_known_model_has_one(model: Model, store: TieredStore, ahead: list[object]) -> None:
    assert isinstance(compiled_step(model, store), CompiledStep)
    assert ahead == []


def test_a_rounded_head_is_sharpened_by_code_that_is_compiled_ahead(
    model: Model, store: TieredStore, ahead: list[object], monkeypatch: pytest.MonkeyPatch
) -> None:
    head = model.step_logits
    rounded = Head(head.norm, head.linear, Product(head.linear.weight.clone(), None))
    monkeypatch.setattr(model, "step_logits", rounded)
    assert compiled_step(model, store) is not None
    assert ahead == [[sharpen]]


def test_a_layer_that_is_not_known_has_none(model: Model, store: TieredStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model, "lean", [None, *model.lean[1:]])
    assert compiled_step(model, store) is None


def test_a_cache_in_another_dtype_has_none(model: Model) -> None:
    store = store_on(None, replace(SMALL, dtype="float16"), host=2)
    assert compiled_step(model, store) is None
    store.close()


def test_a_machine_on_which_numba_cannot_be_used_has_none(
    model: Model, store: TieredStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compiled, "can_compile", lambda: False)
    assert compiled_step(model, store) is None


def test_whoever_switches_it_off_decodes_by_pytorch(tiny_llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STRATAKV_COMPILED", "0")
    with opened(tiny_llama) as runtime:
        assert runtime.engine.compiled is None
        decoded(runtime.engine, [prompted(runtime.engine)], 2)
