"""Every tensor of a GGUF file is used, is known to change nothing, or refuses the file by its name."""

from __future__ import annotations

import gguf
import pytest
from gguf_contents import FAMILIES, changed, contents_of, like, refusal

from stratakv.runtime.model.gguf import directory
from stratakv.runtime.model.gguf.architectures import read_settings
from stratakv.runtime.model.gguf.container import Contents
from stratakv.runtime.model.gguf.directory import ModelFile
from stratakv.runtime.model.gguf.plan import plan_weights

SHAPES: dict[str, dict[str, tuple[int, ...]]] = {}


def model_of(contents: Contents) -> ModelFile:
    """As `directory.read_model`, of contents that no file has."""
    entry, config = read_settings(contents)
    known = SHAPES.setdefault(str(sorted(config.items(), key=str)), {})
    known.update(known or directory._shapes(directory._decoder(config)))
    return ModelFile(contents, config, plan_weights(contents, entry, config, known))


SOME_PARTS = ["attn_qkv", "attn_q_norm", "post_attention_norm", "post_ffw_norm", "attn_norm", "ffn_norm", "ffn_gate",
              "ffn_gate_inp", "ffn_up_exps", "ffn_gate_up_exps", "attn_sinks", "layer_output_scale"]  # fmt: skip


_NEEDED = ("ssm_dt", "exp_probs", "_exps.")
"""Biases that a file has if its model does."""


@pytest.mark.parametrize("family", FAMILIES)
def test_no_tensor_is_passed_over(family: str) -> None:
    stems = gguf.TENSOR_NAMES.values() if family == "llama" else [f"blk.{{bid}}.{part}" for part in SOME_PARTS]
    known = contents_of(family).tensors.keys() | {"output.weight"}
    names = {f"{stem.format(bid=0)}.{end}" for stem in stems for end in ("weight", "odd")} - known
    assert len(names) > 15
    for name in sorted(names):
        assert name in refusal(
            model_of, changed(family, tensors={name: like(family, "token_embd.weight", name=name)})
        ), name


@pytest.mark.parametrize("family", FAMILIES)
def test_no_weight_is_made_up(family: str) -> None:
    for name, tensor in contents_of(family).tensors.items():
        without = changed(family, tensors={name: None})
        if name == "output.weight":
            assert model_of(without).config["tie_word_embeddings"] is True
        elif name.endswith(".bias") and not any(part in name for part in _NEEDED):  # no other would be nothing
            (weight,) = [weight for weight in model_of(without).weights if not weight.parts]
            assert weight.name.endswith(".bias")
        else:
            assert name in refusal(model_of, without)
        other = like(family, name, shape=(tensor.shape[0] - 2, *tensor.shape[1:]))
        assert name in refusal(model_of, changed(family, tensors={name: other}))


def test_a_draft_block_alone_is_called_that() -> None:
    blocks = {name: None for name in contents_of("llama").tensors if name.startswith("blk.0.")}
    assert "the draft block (MTP) of a model alone" in refusal(
        model_of, changed("llama", {"nextn_predict_layers": 1}, blocks)
    )


def test_blocks_that_only_draft_are_left_out() -> None:
    blocks = {f"blk.1.{name[6:]}": like("llama", name) for name in contents_of("llama").tensors if name[:4] == "blk."}
    found = model_of(changed("llama", {"block_count": 2, "nextn_predict_layers": 1}, blocks))
    assert found.config == model_of(contents_of("llama")).config
    assert "blk.1." in refusal(model_of, changed("llama", {"block_count": 1}, blocks))


def test_what_is_for_rounded_activations_is_left_out() -> None:
    name = "blk.0.attn_q.input_scale"
    one = like("llama", "output_norm.weight", name=name, shape=(1,))
    assert model_of(changed("llama", tensors={name: one})).weights == model_of(contents_of("llama")).weights


@pytest.mark.parametrize("family", FAMILIES)
def test_a_scale_of_more_than_one_number_is_refused(family: str) -> None:
    name = "blk.0.ffn_down.scale"
    two = like(family, "token_embd.weight", name=name, shape=(2,))
    assert name in refusal(model_of, changed(family, tensors={name: two}))
