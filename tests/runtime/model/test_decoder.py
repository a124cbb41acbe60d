"""Our decoder layers, configuration and reading of weights against transformers' own: equal to the bit."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hub_configs import HUB
from safetensors.torch import load_file, save_file
from tiny_models import FAMILIES, save_tiny_model
from torch import Tensor

from stratakv.runtime.api.errors import ModelFileError
from stratakv.runtime.model.decoder import activation
from stratakv.runtime.model.llama_config import LlamaConfig
from stratakv.runtime.model.model import Model
from stratakv.runtime.model.rotary import RotaryTables
from stratakv.runtime.untrusted.settings import read_config

CPU = torch.device("cpu")
ROPE: dict[str, dict[str, Any]] = {
    "default": {},
    "linear": {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0}},
    "dynamic": {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 4.0},
                "max_position_embeddings": 512},
    "yarn": {"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0,
                                 "original_max_position_embeddings": 1024}},
    "llama3": {"rope_parameters": {"rope_type": "llama3", "rope_theta": 1e4, "factor": 8.0, "low_freq_factor": 1.0,
                                   "high_freq_factor": 4.0, "original_max_position_embeddings": 256}},
}  # fmt: skip


def own_tables(model: Model, positions: Tensor) -> RotaryTables:
    return model.rotary(positions, model.dtype, model.rope.reach(int(positions.max()) + 1))


def their_tables(model: Model, positions: Tensor) -> RotaryTables:
    """By transformers' own module, whose tables are those of the longest text it has seen."""
    made, like = model.inner.rotary_emb, torch.empty(0, dtype=model.dtype)
    if hasattr(made, "layer_types"):
        return {kind: made(like, positions, kind) for kind in made.layer_types}
    return dict.fromkeys(set(model.kinds), made(like, positions))


def outputs(model: Model, tables: Callable[[Model, Tensor], RotaryTables]) -> list[Tensor]:
    """Embeddings, tables of several positions, what each layer hands to attention and gives, and logits."""

    def attend(layer: int, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
        found.extend([q, k, v, torch.tensor(scale)])
        return (q * scale) * v.repeat_interleave(q.shape[1] // v.shape[1], 1)

    hidden = model.embed(torch.arange(11).view(1, 11))
    found = [hidden]
    for positions in ([0, 1, 2], [900, 3000, 3999], [4, 5, 6]):  # dynamic tables grow, and come back
        for kind, table in sorted(tables(model, torch.tensor([positions])).items()):
            found.extend(table)
            q = torch.linspace(-1, 1, 2 * 3 * model.head_dim).view(1, 2, 3, model.head_dim).to(model.dtype)
            found.extend(model.rotate(model.kinds.index(kind), q, q * 2, {kind: table}))
    for layer in range(model.num_layers):
        hidden = model.run_layer(model.layer(layer, prefill=False), hidden, attend)
        found.append(hidden)
    return [*found, model.logits(hidden[:, -1])]


def assert_equal(folder: Path, dtype: torch.dtype = torch.float32) -> Model:
    with torch.inference_mode():
        own, theirs = (Model.load(folder, CPU, dtype, modules=modules) for modules in ("own", "transformers"))
        sides = outputs(own, own_tables), outputs(theirs, their_tables)
    assert len(sides[0]) == len(sides[1])
    assert all(torch.equal(*pair) for pair in zip(*sides, strict=True))
    assert (own.kinds, own.windows, own.eos_ids) == (theirs.kinds, theirs.windows, theirs.eos_ids)
    assert own.config.rope_parameters == theirs.config.rope_parameters
    assert type(own.tokenizer) is type(theirs.tokenizer)
    return own


def randomised(folder: Path) -> Path:
    """Norms and biases as random as the rest: ones and zeros would hide which is used where."""
    path = folder / "model.safetensors"
    draw = torch.Generator().manual_seed(7)
    weights = load_file(path)
    for name, tensor in weights.items():
        if tensor.dim() == 1:
            weights[name] = tensor + 0.5 * torch.randn(tensor.shape, generator=draw)
    save_file(weights, path, {"format": "pt"})
    return folder


def edited(folder: Path, **changes: Any) -> Path:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return folder


def renamed(folder: Path, names: dict[str, str | None]) -> Path:
    path = folder / "model.safetensors"
    weights = load_file(path)
    for old, new in names.items():
        tensor = weights.pop(old)
        if new is not None:
            weights[new] = tensor
    save_file(weights, path, {"format": "pt"})
    return folder


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_equals_transformers_to_the_bit(family: str, dtype: torch.dtype, tmp_path: Path) -> None:
    assert_equal(randomised(save_tiny_model(tmp_path, family)), dtype)


@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma3_text", "olmo2", "smollm3"])
def test_biases_are_where_the_family_has_them(family: str, tmp_path: Path) -> None:
    assert_equal(randomised(save_tiny_model(tmp_path, family, attention_bias=True, mlp_bias=True)))


@pytest.mark.parametrize("rope", ROPE)
def test_rotary_tables_of_every_kind(rope: str, tmp_path: Path) -> None:
    assert_equal(save_tiny_model(tmp_path, "llama", **ROPE[rope]))


def test_rotary_tables_of_a_long_phi3(tmp_path: Path) -> None:
    parameters = {
        "rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0, 1.1], "long_factor": [2.0, 8.0],
        "partial_rotary_factor": 0.5, "original_max_position_embeddings": 1024,
    }  # fmt: skip
    changes = {"rope_parameters": parameters, "original_max_position_embeddings": 1024, "partial_rotary_factor": 0.5}
    assert_equal(save_tiny_model(tmp_path, "phi3", **changes))


def test_rotary_tables_by_kind_of_layer(tmp_path: Path) -> None:
    parameters = {
        "full_attention": {"rope_type": "linear", "rope_theta": 1e6, "factor": 8.0},
        "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
    }
    assert_equal(save_tiny_model(tmp_path, "gemma3_text", rope_parameters=parameters))


@pytest.mark.parametrize("name", ["silu", "swish", "gelu", "relu", "gelu_pytorch_tanh", "quick_gelu"])
def test_activations(name: str) -> None:
    from transformers.activations import ACT2FN

    x = torch.linspace(-6, 6, 1001)
    assert torch.equal(activation(name)(x), ACT2FN[name](x))


@pytest.mark.parametrize("is_tied", [True, False])
def test_a_head_of_its_own_and_a_shared_one(is_tied: bool, tmp_path: Path) -> None:
    model = assert_equal(save_tiny_model(tmp_path, tie_word_embeddings=is_tied))
    assert (model.hf.lm_head.weight is model.inner.embed_tokens.weight) == is_tied


EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"


def test_a_shared_head_may_be_there_under_the_other_name(tmp_path: Path) -> None:
    folder = renamed(save_tiny_model(tmp_path, tie_word_embeddings=True), {EMBEDDING: HEAD})
    model = assert_equal(folder)
    assert model.hf.lm_head.weight is model.inner.embed_tokens.weight


def test_a_shared_head_that_differs_is_used_as_it_is(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = edited(save_tiny_model(tmp_path, tie_word_embeddings=False), tie_word_embeddings=True)
    model = assert_equal(folder)
    assert model.hf.lm_head.weight is not model.inner.embed_tokens.weight
    assert "both are there and differ" in caplog.text


def test_weights_of_a_model_that_was_saved_without_its_head(tmp_path: Path) -> None:
    folder = save_tiny_model(tmp_path, tie_word_embeddings=True)
    names = load_file(folder / "model.safetensors").keys()
    assert_equal(renamed(folder, {name: name.removeprefix("model.") for name in names}))


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    folder = renamed(save_tiny_model(tmp_path), {"model.layers.1.mlp.up_proj.weight": None})
    for modules in ("own", "transformers"):
        with pytest.raises(ModelFileError, match=r"1 of the model's weights.*model\.layers\.1\.mlp\.up_proj\.weight"):
            Model.load(folder, CPU, torch.float32, modules=modules)


def test_old_tables_are_left_out_without_a_word(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = save_tiny_model(tmp_path)
    path = folder / "model.safetensors"
    weights = load_file(path)
    weights["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(4)
    save_file(weights, path, {"format": "pt"})
    with caplog.at_level(logging.WARNING, "stratakv"):
        assert_equal(folder)
    assert not caplog.records


def test_weights_that_are_no_numbers_are_refused(tmp_path: Path) -> None:
    folder = save_tiny_model(tmp_path)
    path = folder / "model.safetensors"
    weights = load_file(path)
    save_file(weights | {"model.norm.weight": torch.ones(48, dtype=torch.int32)}, path, {"format": "pt"})
    with pytest.raises(ModelFileError, match="has int32 numbers"):
        Model.load(folder, CPU, torch.float32)


def llama_settings() -> dict[str, dict[str, Any]]:
    return {name: settings for name, settings in HUB.items() if settings["model_type"] == "llama"} | {"empty": {}}


@pytest.mark.parametrize("name", llama_settings())
def test_llama_is_configured_as_transformers_does(name: str, tmp_path: Path) -> None:
    from transformers import AutoConfig

    (tmp_path / "config.json").write_text(json.dumps(llama_settings()[name] | {"model_type": "llama"}))
    _, settings = read_config(tmp_path / "config.json")
    theirs, own = AutoConfig.for_model("llama", **settings), LlamaConfig(**settings)
    assert own.to_dict() == theirs.to_dict()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("num_hidden_layers", "seven"), ("rms_norm_eps", "small"), ("rope_parameters", "linear"), ("hidden_act", 7),
        ("tie_word_embeddings", "no"), ("attention_bias", 1.5), ("head_dim", 1.5), ("hidden_size", 4096.5),
        ("num_key_value_heads", [2]), ("attention_dropout", "0"), ("rope_parameters", [1]),
    ],
)  # fmt: skip
def test_llama_refuses_what_transformers_does(name: str, value: Any) -> None:
    from transformers import AutoConfig

    with pytest.raises(Exception, match=name) as theirs:
        AutoConfig.for_model("llama", **{name: value})
    with pytest.raises(type(theirs.value), match=name):
        LlamaConfig(**{name: value})


def test_llama_refuses_a_width_that_heads_do_not_divide() -> None:
    with pytest.raises(Exception, match="hidden_size 47 is not a multiple of num_attention_heads 32"):
        LlamaConfig(hidden_size=47)
