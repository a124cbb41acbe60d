"""Every key of a GGUF file is used, is known to change nothing, or refuses the file by its name."""

from __future__ import annotations

from typing import Any

import gguf
import pytest
from gguf_contents import FAMILIES, changed, contents_of, refusal

from stratakv.runtime.api.errors import ModelFileError
from stratakv.runtime.model.gguf.architectures import read_settings
from stratakv.runtime.model.gguf.container import Contents
from stratakv.runtime.model.gguf.settings import WITHOUT_EFFECT


def all_keys() -> list[str]:
    """Every key of an architecture that gguf has a name for."""
    found: list[str] = []
    pending: list[type] = [gguf.constants.Keys]
    for group in pending:
        for value in vars(group).values():
            if isinstance(value, type):
                pending.append(value)
            elif isinstance(value, str) and value.startswith("{arch}."):
                found.append(value.removeprefix("{arch}.").replace("{dense}", "dense_2"))
    return [*found, "rope.scale_linear", "no_such.key"]


def outcome(contents: Contents) -> Any:
    """config.json, or why there is none."""
    try:
        return read_settings(contents)[1]
    except ModelFileError as error:
        return str(error)


@pytest.mark.parametrize("family", FAMILIES)
def test_no_key_is_passed_over(family: str) -> None:
    plain = outcome(contents_of(family))
    silent = set()
    for name in all_keys():
        each = [outcome(changed(family, {name: value})) for value in (3, 0.4, True, "odd")]
        unlike = [one for one in each if one != plain]
        if not unlike:
            silent.add(name)
        for one in unlike:
            assert not isinstance(one, str) or (f"{family}.{name}" in one and "\n" not in one)
    assert silent <= WITHOUT_EFFECT.keys()


REFUSED: dict[str, tuple[str, dict[str, Any], str]] = {
    "experts": ("qwen3", {"expert_count": 8}, "expert_count: 8 is not supported: a mixture of experts"),
    "too few experts": ("qwen3moe", {"expert_used_count": 7}, "expert_used_count: 7, of 6 experts"),
    "window": ("llama", {"attention.sliding_window": 128}, "attention.sliding_window: 128 is not supported"),
    "uneven": (
        "llama", {"block_count": 2, "feed_forward_length": [96, 80]}, "feed_forward_length: [96, 80] is not supported: "
        "its layers",
    ),
    "too short": ("llama", {"attention.head_count": [4, 4]}, "attention.head_count: [4, 4], 2 numbers for 1 layers"),
    "soft cap": ("gemma3", {"final_logit_softcapping": 30.0}, "final_logit_softcapping: 30.0 is not supported"),
    "scale": ("llama", {"attention.scale": 0.5}, "attention.scale: 0.5 is not supported: the family"),
    "logit scale": ("qwen2", {"logit_scale": 0.5}, "logit_scale: 0.5 is not supported"),
    "both ways": ("qwen3", {"attention.causal": False}, "attention.causal: False is not supported"),
    "part of a head": ("llama", {"rope.dimension_count": 8}, "rope.dimension_count: 8 is not supported"),
    "scaling": ("llama", {"rope.scaling.type": "ntk"}, "rope.scaling.type: 'ntk' is not supported"),
    "phi3, yarn": (
        "phi3", {"rope.scaling.type": "yarn", "rope.scaling.factor": 2.0},
        "rope.scaling.type: 'yarn' is not supported: the family has LongRoPE alone",
    ),
    "base": ("llama", {"rope.freq_base": float("nan")}, "rope.freq_base: nan, expected a finite number"),
    "no epsilon": (
        "llama", {"attention.layer_norm_rms_epsilon": None}, "attention.layer_norm_rms_epsilon: the file does not say"
    ),
    "values": ("llama", {"attention.value_length": 32}, "attention.value_length: 32 is not supported: keys have 16"),
    "only drafts": ("llama", {"nextn_predict_layers": 1}, "nextn_predict_layers: 1, there are 1 blocks"),
    "adapter": ("llama", {".general.type": "adapter"}, "not a model but a LoRA adapter"),
    "image reader": ("llama", {".general.architecture": "clip"}, "not a model but the part of a model that reads"),
    "importance": ("llama", {".imatrix.chunk_size": 512}, "not a model but an importance matrix"),
    "steering": ("llama", {".general.architecture": "controlvector"}, "not a model but a control vector"),
    "other family": ("llama", {".general.architecture": "falcon"}, "model family 'falcon' is not supported; supported"),
    "mistral": ("llama", {".general.architecture": "mistral"}, "model family 'mistral' is not supported"),
    "other type": ("llama", {".general.type": "theme"}, "general.type: 'theme', not a model"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_a_family_cannot_do_is_refused_by_name(case: str) -> None:
    family, keys, expected = REFUSED[case]
    assert expected in refusal(read_settings, changed(family, keys)).removeprefix(f"{family}.")


@pytest.mark.parametrize(("found", "expected"), [(3, 3), (260, 260), (261, None), (None, None)])
def test_a_token_beyond_the_vocabulary_is_none(found: int | None, expected: int | None) -> None:
    config = read_settings(changed("llama", {".tokenizer.ggml.padding_token_id": found}))[1]
    assert config["pad_token_id"] == expected


def test_the_embedding_has_a_row_for_each_token() -> None:
    """It may have more, which have no name."""
    rows = contents_of("llama").tensors["token_embd.weight"].shape[0]
    fewer = changed("llama", {".tokenizer.ggml.tokens": ["a"] * (rows - 1)})
    assert read_settings(fewer)[1]["vocab_size"] == rows
    more = changed("llama", {".tokenizer.ggml.tokens": ["a"] * (rows + 1)})
    assert (
        refusal(read_settings, more)
        == f"{rows + 1} tokens in the vocabulary, token_embd.weight has {rows} rows; take another file"
    )
