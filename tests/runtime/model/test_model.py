"""A model as the engine drives it: its layers' windows, positions, embeddings and queries are the family's own."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_models import save_tiny_model
from torch import Tensor

from stratakv.runtime.model.model import Model

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def model(tiny_llama: Path) -> Model:
    return Model.load(tiny_llama, CPU, torch.float32)


def test_a_window_that_no_text_fills_is_none(tmp_path: Path) -> None:
    """Phi-3's long models have one of twice their longest text: their layers are tiered all the same."""
    folder = save_tiny_model(tmp_path / "model", "phi3", sliding_window=8192, max_position_embeddings=4096)
    assert Model.load(folder, CPU, torch.float32).tiered == [0, 1, 2]


def test_a_window_beyond_all_texts_stays_one_where_its_layers_pages_would_be_others(tmp_path: Path) -> None:
    """Gemma 4's sliding layers have heads of another width than those whose KV is in pages."""
    folder = save_tiny_model(tmp_path / "model", "gemma4_text", max_position_embeddings=32)
    model = Model.load(folder, CPU, torch.float32)
    assert [window is None for window in model.windows] == [kind == "full_attention" for kind in model.kinds]
    assert max(window or 0 for window in model.windows) > model.max_positions


@pytest.mark.parametrize(("family", "windows"), [("llama", [None] * 3), ("olmo2", [None] * 3), ("phi3", [40] * 3)])
def test_layers_slide_where_the_familys_class_has_them_slide(
    family: str, windows: list[int | None], tmp_path: Path
) -> None:
    """Configurations that were made of another family's still name its window, or kinds of layers."""
    folder = save_tiny_model(tmp_path / "model", family)
    path = folder / "config.json"
    kinds = ["full_attention", "sliding_attention", "sliding_attention"]
    path.write_text(json.dumps(json.loads(path.read_text()) | {"sliding_window": 40, "layer_types": kinds}))
    assert Model.load(folder, CPU, torch.float32).windows == windows


def test_tables_of_a_part_of_a_text_are_those_of_its_positions(model: Model) -> None:
    for kind, table in model.tables(30, 33, 0).items():
        for mine, expected in zip(table, model.rotary(torch.tensor([[30, 31, 32]]), torch.float32)[kind], strict=True):
            assert torch.equal(mine, expected)


def test_tokens_are_embedded_alike_for_prefill_and_for_steps(model: Model) -> None:
    tokens = [7, 250, 7]
    rows = model.inner.embed_tokens.weight[tokens]
    step = torch.empty(3, model.config.hidden_size)
    model.embed_step(tokens, step)
    assert torch.equal(step, rows)
    assert torch.equal(model.embed_wide(np.array(tokens, np.uint32)), rows.unsqueeze(0))


@pytest.mark.parametrize("is_lean", [True, False])
def test_a_query_alone_is_the_one_that_the_layer_attends_with(
    is_lean: bool, model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Tensor] = []

    def attend(layer: int, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
        seen.append(q[0].view(2, 3, 8) * scale)
        return torch.zeros_like(q)

    hidden, tables = torch.randn(1, model.config.hidden_size), model.step_tables([500])
    if not is_lean:
        monkeypatch.setattr(model, "lean", [None] * 3)
        monkeypatch.setattr(model, "halves", [None] * 3)
    with torch.inference_mode():
        model.step_layer(2, hidden, tables, attend)
        found = model.query(2, hidden, tables)
    torch.testing.assert_close(found, seen[0], rtol=0, atol=0)


def test_weights_that_were_not_loaded_cannot_be_chosen(model: Model) -> None:
    with pytest.raises(ValueError, match="loaded with other weights cannot have weights=file; load it again"):
        model.use_weights("file")
    assert model.weights == "own"
