"""Directories of models with latent attention: as they are published, and what is refused of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from closeness import assert_close
from safetensors.torch import load_file, save_file
from tiny_models import save_tiny_model

from stratakv.kernels.prefill_attention import prefill_attention_reference
from stratakv.runtime import ModelFileError
from stratakv.runtime.model.latent import Latent, LatentHeads
from stratakv.runtime.model.mlp import Experts
from stratakv.runtime.model.model import Model

CPU = torch.device("cpu")


def changed(folder: Path, **said: Any) -> Path:
    path = folder / "config.json"
    config = {**json.loads(path.read_text()), **said}
    path.write_text(json.dumps({name: value for name, value in config.items() if value is not ...}))
    return folder


def test_a_directory_as_it_is_published(tmp_path: Path) -> None:
    """Experts apart, positions as transformers 4 wrote them, dense layers as a number, a layer that only drafts."""
    folder = save_tiny_model(tmp_path, "glm4_moe_lite", rope_parameters={"rope_type": "default", "rope_theta": 1e6})
    before = Model.load(folder, CPU, torch.bfloat16)
    weights = load_file(folder / "model.safetensors")
    assert "model.layers.1.mlp.experts.5.down_proj.weight" in weights
    draft = {
        name.replace("layers.2.", "layers.3."): weight.clone()
        for name, weight in weights.items()
        if "layers.2." in name
    }
    save_file({**weights, **draft, "model.layers.3.eh_proj.weight": torch.ones(2)}, folder / "model.safetensors")
    published = {"rope_theta": 1000000, "rope_scaling": None, "partial_rotary_factor": 1.0, "topk_method": "noaux_tc"}
    changed(
        folder, **published, rope_parameters=..., mlp_layer_types=..., first_k_dense_replace=1,
        num_nextn_predict_layers=1,
    )  # fmt: skip
    model = Model.load(folder, CPU, torch.bfloat16)
    assert [isinstance(layer.mlp, Experts) for layer in model.inner.layers] == [False, True, True]
    assert model.rope.tables["every_layer"]["rope_theta"] == before.rope.tables["every_layer"]["rope_theta"] == 1e6
    for name, weight in model.hf.state_dict().items():
        assert torch.equal(weight, before.hf.state_dict()[name])
        is_exact = name.endswith(("mlp.gate.weight", "e_score_correction_bias"))
        assert weight.dtype == (torch.float32 if is_exact else torch.bfloat16), name
    with pytest.raises(ModelFileError, match=r"and \d+ more, is no weight of what config.json describes: num_hidden_"):
        Model.load(changed(folder, num_nextn_predict_layers=0), CPU, torch.bfloat16)


@pytest.mark.parametrize(
    ("said", "problem"),
    [
        ({"num_key_value_heads": 3}, "num_key_value_heads: 3, but each of 6 heads has keys of its own"),
        ({"n_group": 4}, "n_group: 1 of 4, of 6 experts"),
        ({"num_experts_per_tok": 7}, "num_experts_per_tok: 7, of 6 experts"),
        ({"mlp_layer_types": ["sparse"]}, "mlp_layer_types: expected dense or sparse for each of 3 layers"),
        ({"kv_lora_rank": 0}, "kv_lora_rank: 0, expected a whole number from 1"),
        ({"kv_lora_rank": 34}, "its shape is"),
    ],
    ids=str,
)
def test_what_does_not_fit_together_is_refused(said: dict[str, Any], problem: str, tmp_path: Path) -> None:
    folder = changed(save_tiny_model(tmp_path, "glm4_moe_lite"), **said)
    with pytest.raises(ModelFileError, match=problem):
        Model.load(folder, CPU, torch.float32)


def test_transformers_own_layers_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match="runs with our own layers only: it attends to latents"):
        Model.load(save_tiny_model(tmp_path, "glm4_moe_lite"), CPU, torch.float32, modules="transformers")


def test_keys_and_values_of_heads_give_what_latents_give() -> None:
    sizes = Latent(rank=32, rotated=8, plain=12, value=20, query_rank=None)
    draw = torch.Generator().manual_seed(0)
    weight, q, k = (torch.randn(*shape, generator=draw) for shape in ((3 * 32, 32), (3, 9, 20), (1, 9, 40)))
    heads = LatentHeads(weight, sizes)
    found, _ = prefill_attention_reference(q, *heads.expanded(k), scale=0.1, causal=True)
    latent, _ = prefill_attention_reference(heads.absorbed(q), k, k[..., 8:], scale=0.1, causal=True)
    assert_close("out", found, heads.made(latent))


def test_from_how_many_rows_keys_of_heads_cost_less() -> None:
    """As many products as it takes to make a key and a value of a head, over those that a row saves then."""
    made = LatentHeads(torch.empty(0), Latent(rank=512, rotated=64, plain=192, value=256, query_rank=768))
    assert made.expands_from == 512 * (192 + 256) / (576 + 576 - 256 - 256) == 358.4
    never = LatentHeads(torch.empty(0), Latent(rank=16, rotated=8, plain=24, value=24, query_rank=None))
    assert never.expands_from == float("inf")
