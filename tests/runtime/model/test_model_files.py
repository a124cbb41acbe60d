"""What a directory says of its model is checked before anything is allocated, and what was read of it once more."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers
from tokenizers import AddedToken, Tokenizer, models

from stratakv.runtime.api.errors import ModelFileError
from stratakv.runtime.model.llama_config import LlamaConfig
from stratakv.runtime.model.model_files import (
    attention,
    check_vocabulary,
    make_configuration,
    read_configuration,
    read_generation,
    rope_of,
)

GEMMA4 = {
    "model_type": "gemma4_text", "num_hidden_layers": 3, "head_dim": 16, "hidden_size_per_layer_input": 0,
    "layer_types": ["sliding_attention", "sliding_attention", "full_attention"],
}  # fmt: skip
SIZES = {"model_type": "llama", "hidden_size": 48, "num_attention_heads": 6, "num_key_value_heads": 2}


def said(folder: Path, **changes: Any) -> Path:
    (folder / "config.json").write_text(json.dumps(SIZES | changes))
    return folder


def test_a_configuration_has_its_positions_and_its_place(tmp_path: Path) -> None:
    folder = said(tmp_path, rope_theta=5e5, rope_scaling={"type": "linear", "factor": 2.0})
    config = read_configuration(folder, "own", has_weights=False)
    assert type(config) is LlamaConfig
    assert config.name_or_path == str(folder)
    assert config.rope_parameters == {"rope_type": "linear", "rope_theta": 5e5, "factor": 2.0}
    assert rope_of(config) is config.rope
    in_memory = make_configuration("llama", {**SIZES, "rope_parameters": config.rope_parameters})
    assert rope_of(in_memory) == config.rope
    assert set(config.rope.head_dims.values()) == {8}


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"attn_logit_softcapping": 30.0}, "config.json: attn_logit_softcapping: 30.0 is not supported"),
        ({"final_logit_softcapping": 50.0}, "config.json: final_logit_softcapping: 50.0 is not supported"),
        ({"use_bidirectional_attention": True}, "use_bidirectional_attention is not supported"),
        ({"model_type": "qwen2", "num_hidden_layers": 1, "layer_types": ["chunked_attention"]},
         "layers of type chunked_attention are not supported"),
        ({"num_key_value_heads": 4}, "config.json: num_key_value_heads: 4, which do not divide 6 attention heads"),
        ({"hidden_size": 18}, "config.json: head_dim: 3, expected an even number from 2"),
        ({"model_type": "cohere2", "sliding_window": None}, "sliding_window: null, but the model has layers that"),
        ({"model_type": "exaone4", "sliding_window": None, "layer_types": ["sliding_attention"] * 32},
         "sliding_window: null"),
        ({"model_type": "granite", "residual_multiplier": 0}, "residual_multiplier: 0, expected a number above 0"),
        ({"model_type": "granite", "logits_scaling": 1e9}, "logits_scaling: 1000000000.0, expected a number above 0"),
        ({"model_type": "cohere2", "logit_scale": True}, "logit_scale: True, expected a number above 0"),
        ({**GEMMA4, "num_kv_shared_layers": 1}, "num_kv_shared_layers: 1 of 3 layers, so none that are full_attention"),
        ({**GEMMA4, "hidden_size_per_layer_input": 8, "vocab_size_per_layer_input": 7},
         "vocab_size_per_layer_input: 7, of 262144 tokens"),
        ({**GEMMA4, "enable_moe_block": True, "num_experts": 2, "top_k_experts": 3, "moe_intermediate_size": 8},
         "top_k_experts: 3, of 2 experts"),
        ({**GEMMA4, "enable_moe_block": True}, "num_experts: the file does not say it"),
        ({**GEMMA4, "use_bidirectional_attention": "all"}, "use_bidirectional_attention is not supported"),
        ({**GEMMA4, "final_logit_softcapping": -1.0}, "final_logit_softcapping: -1.0, expected a number above 0"),
        ({**GEMMA4, "global_head_dim": 5}, "global_head_dim: 5, expected an even number"),
        ({**GEMMA4, "num_global_key_value_heads": 4, "attention_k_eq_v": True}, "num_key_value_heads: 4, which do not"),
        ({**GEMMA4, "rope_theta": 1e4}, "rope_theta: which layers it is about is not said"),
        ({**GEMMA4, "per_layer_config": {"0": {"hidden_size": 8}}}, "per_layer_config: 'hidden_size', expected"),
        ({**GEMMA4, "per_layer_config": {"x": {"head_dim": 8}}}, "per_layer_config: 'x', expected"),
        ({**GEMMA4, "per_layer_config": {"0": {"head_dim": 2**40}}}, "head_dim: 1099511627776, expected"),
        ({**GEMMA4, "per_layer_config": {"0": {"head_dim": 32}}}, "layer 1: 2 heads of 16 for keys, others that are"),
        ({"per_layer_config": {"0": {"head_dim": 32}}}, "per_layer_config: llama has layers of one size"),
    ],
    ids=str,
)  # fmt: skip
def test_what_our_forward_pass_lacks_is_refused(changes: dict[str, Any], problem: str, tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match=problem):
        read_configuration(said(tmp_path, **changes), "own", has_weights=False)


EXAONE = {"model_type": "exaone4", "num_hidden_layers": 6, "num_key_value_heads": 2}


@pytest.mark.parametrize(
    ("settings", "slide"),
    [
        ({"sliding_window": 64, "sliding_window_pattern": "LLLG"}, [1, 1, 1, 0, 1, 0]),
        ({"sliding_window": 64, "sliding_window_pattern": "LG"}, [1, 0, 1, 0, 1, 0]),
        ({"sliding_window": 64, "sliding_window_pattern": 3}, [1, 1, 0, 1, 1, 0]),
        ({"sliding_window": None, "sliding_window_pattern": None}, [0] * 6),
        ({"sliding_window": 64, "sliding_window_pattern": "LLLG", "layer_types": ["full_attention"] * 6}, [0] * 6),
    ],
    ids=str,
)
def test_which_layers_slide_in_every_spelling(settings: dict[str, Any], slide: list[int], tmp_path: Path) -> None:
    config = read_configuration(said(tmp_path, **EXAONE, **settings), "own", has_weights=False)
    assert [int(kind == "sliding_attention") for kind in config.layer_types] == slide


def test_a_model_needs_no_more_weights_than_its_files_have(tiny_llama: Path, tmp_path: Path) -> None:
    settings = json.loads((tiny_llama / "config.json").read_text())
    (tmp_path / "model.safetensors").symlink_to(tiny_llama / "model.safetensors")
    assert read_configuration(said(tmp_path, **settings), "own").vocab_size == settings["vocab_size"]
    more = said(tmp_path, **settings | {"vocab_size": 10 * settings["vocab_size"]})
    with pytest.raises(ModelFileError, match=r"vocab_size=2590.* ask for \d+ weights, the file has \d+"):
        read_configuration(more, "own")
    assert read_configuration(more, "own", has_weights=False).vocab_size == 2590


def test_the_attention_of_transformers_layers_is_the_one_that_was_handed_in() -> None:
    """It gives heads first and takes them back behind the tokens."""
    q, k, v = (torch.randn(1, heads, 3, 8) for heads in (6, 2, 2))
    seen: list[Any] = []

    def attend(*given: Any) -> torch.Tensor:
        seen.extend(given)
        return q

    out, weights = attention(SimpleNamespace(layer_idx=2), q, k, v, None, scaling=0.5, strata_attend=attend)
    assert (seen[0], seen[4], weights) == (2, 0.5, None)
    assert all(mine is given for mine, given in zip(seen[1:4], (q, k, v), strict=True))
    assert torch.equal(out, q.transpose(1, 2))


@pytest.mark.parametrize(
    ("more", "special", "size", "problem"),
    [
        (None, False, 3, None),
        (None, False, 2, "token 2, the model has 2"),
        ("<image>", True, 3, None),
        ("<image>", False, 3, "token 3, the model has 3"),
    ],
)
def test_a_token_that_a_text_can_have_has_weights(
    more: str | None, special: bool, size: int, problem: str | None
) -> None:
    backend = Tokenizer(models.WordLevel({"a": 0, "b": 1, "c": 2}, unk_token="a"))
    if more is not None:
        backend.add_tokens([AddedToken(more, special=special)])
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=backend)
    if problem is None:
        check_vocabulary(tokenizer, size, Path("folder"))
        return
    with pytest.raises(ModelFileError, match=f"folder/tokenizer.json: vocabulary: {problem}"):
        check_vocabulary(tokenizer, size, Path("folder"))


def test_settings_of_generation_are_the_directorys_if_it_has_any(tmp_path: Path) -> None:
    decoder: Any = SimpleNamespace(generation_config=None)
    read_generation(tmp_path, decoder)
    assert decoder.generation_config is None
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [2, 3]}')
    read_generation(tmp_path, decoder)
    assert decoder.generation_config.eos_token_id == [2, 3]
