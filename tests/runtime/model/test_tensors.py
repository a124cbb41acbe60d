"""The tensors of a model directory: each is a weight of the model, changes nothing, or is an error that names it."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import save_tiny_model
from torch import Tensor

from stratakv.runtime import ModelFileError
from stratakv.runtime.model.model import Model

CPU = torch.device("cpu")
QUANTISED, ADAPTER = "its weights are quantised", "merge that into the model"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return save_tiny_model(tmp_path / "model")


def write(folder: Path, tensors: dict[str, Tensor], **settings: Any) -> Path:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return folder


def read(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / "model.safetensors")


def same(one: Model, other: Model) -> bool:
    pairs = zip(one.hf.state_dict().items(), other.hf.state_dict().items(), strict=True)
    return all(a == b and torch.equal(x, y) for (a, x), (b, y) in pairs)


@pytest.mark.parametrize(
    "prefix", ["", "model.", "transformer.", "language_model.model.", "model.language_model.", "_orig_mod.model."]
)
@pytest.mark.parametrize("head", ["beside", "outside"])
def test_names_may_begin_with_whatever_a_tool_has_put_there(prefix: str, head: str, folder: Path) -> None:
    plain = Model.load(folder, CPU, torch.float32)
    before = prefix.removesuffix("model.") if head == "beside" else ""
    tensors = {
        f"{before}{name}" if name == "lm_head.weight" else f"{prefix}{name.removeprefix('model.')}": tensor
        for name, tensor in read(folder).items()
    }
    assert same(Model.load(write(folder, tensors), CPU, torch.float32), plain)


def together(tensors: dict[str, Tensor], count: int) -> dict[str, Tensor]:
    """The same weight of all experts of a layer in one tensor, gate and up in one."""
    found = dict(tensors)
    for layer in {name.partition(".experts.")[0] for name in tensors if ".experts." in name}:
        each = {
            part: torch.stack([found.pop(f"{layer}.experts.{number}.{part}.weight") for number in range(count)])
            for part in ("gate_proj", "up_proj", "down_proj")
        }
        found[f"{layer}.experts.gate_up_proj"] = torch.cat([each["gate_proj"], each["up_proj"]], 1)
        found[f"{layer}.experts.down_proj"] = each["down_proj"]
    return found


def test_experts_may_stand_together(tmp_path: Path) -> None:
    folder = save_tiny_model(tmp_path / "model", "qwen3_moe")
    plain, tensors = Model.load(folder, CPU, torch.float32), read(folder)
    assert same(Model.load(write(folder, together(tensors, 6)), CPU, torch.float32), plain)
    layer = "model.layers.0.mlp.experts."
    lacking = {name: tensor for name, tensor in tensors.items() if name != f"{layer}3.up_proj.weight"}
    with pytest.raises(ModelFileError, match=r"1 of the model's weights are not there.*experts\.3\.up_proj"):
        Model.load(write(folder, lacking), CPU, torch.float32)
    odd = together(tensors, 6)
    odd[f"{layer}gate_up_proj"] = odd[f"{layer}gate_up_proj"][:5].clone()
    with pytest.raises(
        ModelFileError, match=r"experts\.gate_up_proj.*\[5, 64, 48\], config.json asks for \[6, 64, 48\]"
    ):
        Model.load(write(folder, odd), CPU, torch.float32)


@pytest.mark.parametrize(
    ("wrapper", "family", "names"),
    [("gemma3", "gemma3_text", "language_model."), ("mistral3", "mistral", "language_model."),
     ("mistral3", "ministral3", "language_model."),
     ("llava", "llama", "language_model."), ("gemma3", "gemma3_text", ""),
     ("gemma4", "gemma4_text", "model.language_model."), ("qwen3_5", "qwen3_5_text", "model.language_model."),
     ("qwen3_5_moe", "qwen3_5_moe_text", "model.language_model.")],
)  # fmt: skip
def test_the_text_of_a_model_of_pictures_and_text(
    wrapper: str, family: str, names: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = save_tiny_model(tmp_path / "model", family)
    plain = Model.load(folder, CPU, torch.float32)
    drop = "model." if names.startswith("model.") else ""
    tensors = {f"{names}{name.removeprefix(drop)}": tensor for name, tensor in read(folder).items()}
    norm = "post_attention_layernorm" if wrapper == "gemma4" else "layer_norm1"  # named as the text's own
    tensors[f"{drop}vision_tower.encoder.layers.0.{norm}.weight"] = torch.ones(4)
    text = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(
        json.dumps({"model_type": wrapper, "text_config": text, "eos_token_id": [1], "vision_config": {"depth": 2}})
    )
    write(folder, tensors)
    with caplog.at_level(logging.WARNING, "stratakv"):
        found = Model.load(folder, CPU, torch.float32)
    assert same(found, plain)
    assert found.eos_ids == plain.eos_ids | {1}
    assert "1 tensors: the part for pictures" in caplog.text


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"model_type": "paligemma", "text_config": {"model_type": "llama"}}, "'paligemma' is one of several parts"),
        ({"model_type": "mistral3", "text_config": {"model_type": "mistral4"}}, "'mistral4' is not supported"),
        ({"model_type": "llava", "text_config": {"hidden_size": 8}}, "text_config: model_type"),
        ({"model_type": "llava", "text_config": {"model_type": "llama"}, "quantization_config": {}}, "plain ones"),
    ],
)
def test_wrappers_whose_text_cannot_be_taken(folder: Path, settings: dict[str, Any], told: str) -> None:
    (folder / "config.json").write_text(json.dumps(settings))
    with pytest.raises(ModelFileError, match=told):
        Model.load(folder, CPU, torch.float32)


LEFT_OVER = {
    "model.layers.1.self_attn.q_proj.bias": "it would be left out",
    "model.layers.1.mlp.down_proj.scale": QUANTISED,
    "model.layers.1.mlp.down_proj.weight_scale": QUANTISED,
    "model.layers.1.mlp.down_proj.weight_scale_inv": QUANTISED,
    "model.layers.1.mlp.down_proj.qweight": QUANTISED,
    "model.layers.1.mlp.down_proj.weight.absmax": QUANTISED,
    "model.layers.3.mlp.down_proj.weight": "num_hidden_layers is 3",
    "model.layers.1.self_attn.q_proj.lora_A.weight": ADAPTER,
    "model.layers.1.self_attn.q_proj.base_layer.weight": ADAPTER,
    "model.layers.1.block_sparse_moe.experts.0.w1.weight": "mixture of experts",
    "model.layers.1.mlp.gate.weight": "mixture of experts",
    "model.layers.1.self_attn.q_norm.weight": "it would be left out",
    "score.weight": "it would be left out",
    "other.lm_head.weight": "it would be left out",
}


@pytest.mark.parametrize("modules", ["own", "transformers"])
def test_what_is_left_over_and_may_change_the_result_is_an_error(modules: str, folder: Path) -> None:
    tensors = read(folder)
    for name, told in LEFT_OVER.items():
        write(folder, tensors | {name: torch.ones(4)})
        with pytest.raises(ModelFileError, match=f"tensor {name!r} is no weight .*: .*{told}") as caught:
            Model.load(folder, CPU, torch.float32, modules=modules)
        assert "\n" not in str(caught.value)


def test_the_most_telling_of_many_is_named(folder: Path) -> None:
    write(folder, read(folder) | {name: torch.ones(4) for name in LEFT_OVER})
    with pytest.raises(ModelFileError, match=rf"base_layer\.weight', and {len(LEFT_OVER) - 1} more,.*{ADAPTER}"):
        Model.load(folder, CPU, torch.float32)


@pytest.mark.parametrize("name", ["vision_tower.x.weight", "model.vision_tower.x.weight", "mtp.layers.0.x.weight"])
def test_what_changes_no_text_is_told_and_left_out(name: str, folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    plain = Model.load(folder, CPU, torch.float32)
    write(folder, read(folder) | {name: torch.ones(4)})
    with caplog.at_level(logging.WARNING, "stratakv"):
        assert same(Model.load(folder, CPU, torch.float32), plain)
    assert name in caplog.text


@pytest.mark.parametrize("modules", ["own", "transformers"])
def test_a_weight_of_another_shape_is_told_with_both(modules: str, folder: Path) -> None:
    tensors = read(folder)
    name = "model.layers.2.mlp.up_proj.weight"
    write(folder, tensors | {name: tensors[name][:, :-1].contiguous()})
    with pytest.raises(ModelFileError, match=rf"{name}': its shape is \[80, 47\], config.json asks for \[80, 48\]"):
        Model.load(folder, CPU, torch.float32, modules=modules)


def test_keys_of_layers_that_share_anothers_are_left_out(tmp_path: Path) -> None:
    """Published files have them, in a directory of several parts."""
    folder = save_tiny_model(tmp_path / "model", "gemma4_text-shared")
    plain, tensors = Model.load(folder, CPU, torch.float32), read(folder)
    assert not any(".layers.5.self_attn.k_proj" in name for name in tensors)
    inside = {name.replace("model.", "model.language_model.", 1): tensor for name, tensor in tensors.items()}
    layer = "model.language_model.layers.5.self_attn."
    unread = {f"{layer}{part}.weight": torch.zeros(4, 4) for part in ("k_proj", "v_proj", "k_norm")}
    assert same(Model.load(write(folder, inside | unread), CPU, torch.float32), plain)
    other = {"model.language_model.layers.3.self_attn.sinks.weight": torch.zeros(4)}
    with pytest.raises(ModelFileError, match=r"layers\.3\.self_attn\.sinks"):
        Model.load(write(folder, inside | other), CPU, torch.float32)


def test_two_decoders_are_one_too_many(folder: Path) -> None:
    tensors = read(folder)
    write(folder, tensors | {f"draft.{name}": tensor.clone() for name, tensor in tensors.items()})
    with pytest.raises(ModelFileError, match="2 decoders"):
        Model.load(folder, CPU, torch.float32)
