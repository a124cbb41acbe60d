"""Files that are no language model are named for what they are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from stratakv.runtime import ModelFileError
from stratakv.runtime.model.gguf.container import Contents
from stratakv.runtime.model.gguf.kinds import check_is_model

LLAMA = {"general.architecture": "llama"}


def contents(keys: dict[str, Any], *names: str) -> Contents:
    tensors: dict[str, Any] = dict.fromkeys(names)
    return Contents(Path("a.gguf"), keys, tensors, 0, 0, 1)


@pytest.mark.parametrize("more", [{}, {"general.type": "model"}])
def test_a_model_has_an_architecture(more: dict[str, str]) -> None:
    assert check_is_model(contents({**LLAMA, **more}, "blk.0.attn_q.weight")) == "llama"


@pytest.mark.parametrize(
    ("keys", "names", "says"),
    [
        ({"general.type": "adapter"}, [], "a LoRA adapter"),
        ({"adapter.type": "lora"}, [], "a LoRA adapter"),
        ({}, ["blk.0.attn_q.weight.lora_a"], "a LoRA adapter"),
        ({"general.architecture": "clip"}, ["v.blk.0.ln1.weight"], "reads images or sound"),
        ({"general.architecture": "controlvector"}, [], "a control vector"),
        ({"imatrix.datasets": []}, [], "an importance matrix"),
        ({}, ["blk.0.attn_q.weight.in_sum2"], "an importance matrix"),
        ({"tokenizer.ggml.tokens": []}, [], "a vocabulary without weights"),
        ({"llama.nextn_predict_layers": 1}, ["blk.40.attn_q.weight"], "the draft block"),
        ({"general.type": "painting"}, [], "general.type: 'painting', not a model"),
        ({"general.architecture": 7}, ["blk.0.attn_q.weight"], "general.architecture: 7, expected a string"),
    ],
)
def test_others_are_refused_by_what_they_are(keys: dict[str, Any], names: list[str], says: str) -> None:
    with pytest.raises(ModelFileError, match=says):
        check_is_model(contents({**LLAMA, **keys}, *names))


def test_a_model_with_its_draft_block_is_a_model() -> None:
    keys = {**LLAMA, "llama.nextn_predict_layers": 1}
    assert check_is_model(contents(keys, "blk.0.attn_q.weight", "blk.40.attn_q.weight")) == "llama"
