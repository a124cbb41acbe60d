"""Our configuration of Llama is transformers' own, field by field, in what it takes and in what it refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hub_configs import HUB

from stratakv.runtime.model.llama_config import LlamaConfig
from stratakv.runtime.untrusted.settings import read_config


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
