"""What a model's JSON files may not say, and that what ordinary models say is understood as transformers does."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from hub_configs import HUB
from tiny_models import FAMILIES as TINY
from tiny_models import save_tiny_model
from transformers import AutoConfig, PreTrainedConfig

from stratakv.runtime.api.errors import ModelFileError
from stratakv.runtime.untrusted.directory import check_directory
from stratakv.runtime.untrusted.families import FAMILIES
from stratakv.runtime.untrusted.settings import read_config

UNUSED = {"initializer_range", "use_cache", "output_router_logits", "router_aux_loss_coef", "router_jitter_noise"}
"""Of training, and of a cache that is not ours."""


@pytest.fixture
def model(tiny_llama: Path, tmp_path: Path) -> Path:
    shutil.copytree(tiny_llama, tmp_path / "model")
    return tmp_path / "model"


def change(path: Path, **settings: Any) -> None:
    found = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps(found | settings))


@pytest.mark.parametrize("name", HUB)
def test_a_hub_model_is_configured_as_transformers_does(name: str, tmp_path: Path) -> None:
    plain = {key: value for key, value in HUB[name].items() if key != "auto_map"}
    (tmp_path / "config.json").write_text(json.dumps(plain))
    expected = AutoConfig.from_pretrained(tmp_path).to_dict()
    (tmp_path / "config.json").write_text(json.dumps(HUB[name]))
    family, settings = read_config(tmp_path / "config.json")
    found = AutoConfig.for_model(family, **settings).to_dict()
    names = FAMILIES[family].names & expected.keys()
    assert {key: found[key] for key in names} == {key: expected[key] for key in names}


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_no_setting_of_a_family_is_lost(family: str) -> None:
    """Fails when transformers gives a family a setting that nobody has looked at."""
    its_own = {field.name for field in dataclasses.fields(type(AutoConfig.for_model(family)))}
    its_own -= {field.name for field in dataclasses.fields(PreTrainedConfig)}
    assert its_own - UNUSED <= FAMILIES[family].names
    assert family in TINY


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("quantization_config", {"quant_method": "awq"}),
        ("compression_config", {"format": "dense"}),
        ("trust_remote_code", True),
        ("custom_pipelines", {"x": {"impl": "evil.Evil"}}),
        ("_attn_implementation_internal", "someone/kernel"),
        ("_attn_implementation_internal", "eager"),
        ("_experts_implementation_internal", "eager"),
        ("_attn_implementation", "someone/kernel"),
        ("attn_implementation", "someone/kernel@main"),
        ("transformers_weights", "../other.safetensors"),
        ("kernel_config", {"x": "y"}),
        ("eos_token_id", [[1]]),
        ("bos_token_id", "1"),
        ("num_key_value_heads", 4),
        ("head_dim", 7),
        ("head_dim", 0),
        ("num_hidden_layers", 2**60),
        ("attn_logit_softcapping", 30.0),
    ],
)
def test_a_setting_that_must_not_be_followed(model: Path, name: str, value: Any) -> None:
    change(model / "config.json", **{name: value})
    with pytest.raises(ModelFileError, match=rf"config\.json: {name}: "):
        load(model)


def test_auto_map_is_not_handed_on(model: Path) -> None:
    change(model / "config.json", auto_map={"AutoConfig": "evil.Evil"}, _name_or_path="x/y", unheard_of=1)
    _, settings = read_config(model / "config.json")
    assert not settings.keys() & {"auto_map", "_name_or_path", "unheard_of"}
    load(model)


def test_layer_types_of_a_mistral(tmp_path: Path) -> None:
    folder = save_tiny_model(tmp_path / "model", "mistral")
    change(folder / "config.json", layer_types=["full_attention"] * 3)
    with pytest.raises(ModelFileError, match="layer_types"):
        check_directory(folder)


@pytest.mark.parametrize("file", ["tokenizer_config.json", "special_tokens_map.json"])
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("fast_tokenizer_files", ["../tokenizer.4.0.0.json"]),
        ("fast_tokenizer_files", ["/etc/tokenizer.4.0.0.json"]),
        ("fast_tokenizer_files", [".."]),
        ("fast_tokenizer_files", "tokenizer.4.0.0.json"),
        ("tokenizer_file", "/etc/passwd"),
        ("vocab_file", "../vocab.json"),
        ("gguf_file", "x.gguf"),
        ("init_inputs", ["/etc/passwd"]),
        ("auto_map", {"AutoTokenizer": ["evil.Evil", None]}),
        ("model_max_length", "512"),
        ("model_max_length", True),
        ("model_max_length", -1),
    ],
)
def test_a_tokenizer_setting_that_must_not_be_followed(model: Path, file: str, name: str, value: Any) -> None:
    change(model / file, **{name: value})
    with pytest.raises(ModelFileError, match=rf"{file}: {name}:"):
        check_directory(model)


def test_what_ordinary_tokenizer_settings_say(model: Path) -> None:
    change(
        model / "tokenizer_config.json", tokenizer_file=None, special_tokens_map_file="/home/a/special_tokens_map.json",
        model_max_length=1000000000000000019884624838656, name_or_path="a/b", init_inputs=[],
    )  # fmt: skip
    load(model)


def test_a_versioned_tokenizer_file_is_looked_through(model: Path) -> None:
    change(model / "tokenizer_config.json", fast_tokenizer_files=["tokenizer.4.0.0.json"])
    (model / "tokenizer.4.0.0.json").write_text('{"normalizer":' + '{"a":' * 20 + "1" + "}" * 21)
    with pytest.raises(ModelFileError, match=r"tokenizer\.4\.0\.0\.json: normalizer:"):
        check_directory(model)


def test_a_token_that_the_model_does_not_have(model: Path) -> None:
    found = json.loads((model / "tokenizer.json").read_text())
    found["model"]["vocab"]["beyond"] = 264
    (model / "tokenizer.json").write_text(json.dumps(found))
    with pytest.raises(ModelFileError, match=r"tokenizer\.json: vocabulary: token 264, the model has 259"):
        load(model)


def test_an_added_token_that_the_model_does_not_have(model: Path) -> None:
    token = {"content": "<image>", "special": True}
    change(model / "tokenizer_config.json", added_tokens_decoder={"259": token})
    load(model)
    change(model / "tokenizer_config.json", added_tokens_decoder={"259": token | {"special": False}})
    with pytest.raises(ModelFileError, match=r"tokenizer\.json: vocabulary: token 259, the model has 259"):
        load(model)


def load(folder: Path) -> None:
    import torch

    from stratakv.runtime.model.locate import locate
    from stratakv.runtime.model.model import Model

    found = locate(str(folder), "float32", on_convert=lambda name: None)
    Model.load(found, torch.device("cpu"), torch.float32)
