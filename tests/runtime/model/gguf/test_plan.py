"""Every key and every tensor of a GGUF file is used, is known to change nothing, or refuses the file by its name."""

from __future__ import annotations

from typing import Any

import gguf
import pytest
from gguf_contents import FAMILIES, changed, contents_of, like

from stratakv.runtime.api.errors import ModelFileError
from stratakv.runtime.model.gguf import directory
from stratakv.runtime.model.gguf.architectures import ARCHITECTURES, read_settings
from stratakv.runtime.model.gguf.container import Contents
from stratakv.runtime.model.gguf.directory import ModelFile
from stratakv.runtime.model.gguf.plan import plan_weights
from stratakv.runtime.model.gguf.settings import WITHOUT_EFFECT

SHAPES: dict[str, dict[str, tuple[int, ...]]] = {}


def model_of(contents: Contents) -> ModelFile:
    """As `directory.read_model`, of contents that no file has."""
    entry, config = read_settings(contents)
    known = SHAPES.setdefault(str(sorted(config.items(), key=str)), {})
    known.update(known or directory._shapes(config))
    return ModelFile(contents, config, plan_weights(contents, entry, config, known))


def refusal(contents: Contents) -> str:
    with pytest.raises(ModelFileError) as raised:
        model_of(contents)
    said = str(raised.value)
    assert "\n" not in said
    return said.removeprefix(f"{contents.path}: ")


def test_the_table_has_the_architectures_that_are_tried() -> None:
    assert ARCHITECTURES.keys() == FAMILIES.keys()


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


SOME_PARTS = ["attn_qkv", "attn_q_norm", "post_attention_norm", "post_ffw_norm", "attn_norm", "ffn_norm", "ffn_gate",
              "ffn_gate_inp", "ffn_up_exps", "ffn_gate_up_exps", "attn_sinks", "layer_output_scale"]  # fmt: skip


@pytest.mark.parametrize("family", FAMILIES)
def test_no_tensor_is_passed_over(family: str) -> None:
    stems = gguf.TENSOR_NAMES.values() if family == "llama" else [f"blk.{{bid}}.{part}" for part in SOME_PARTS]
    known = contents_of(family).tensors.keys() | {"output.weight"}
    names = {f"{stem.format(bid=0)}.{end}" for stem in stems for end in ("weight", "odd")} - known
    assert len(names) > 15
    for name in sorted(names):
        assert name in refusal(changed(family, tensors={name: like(family, "output_norm.weight", name=name)})), name


@pytest.mark.parametrize("family", FAMILIES)
def test_no_weight_is_made_up(family: str) -> None:
    for name, tensor in contents_of(family).tensors.items():
        without = changed(family, tensors={name: None})
        if name == "output.weight":
            assert model_of(without).config["tie_word_embeddings"] is True
        elif name.endswith(".bias"):  # no other number would be nothing
            (weight,) = [weight for weight in model_of(without).weights if not weight.parts]
            assert weight.name.endswith(".bias")
        else:
            assert name in refusal(without)
        other = like(family, name, shape=(tensor.shape[0] - 2, *tensor.shape[1:]))
        assert name in refusal(changed(family, tensors={name: other}))


REFUSED: dict[str, tuple[str, dict[str, Any], str]] = {
    "experts": ("llama", {"expert_count": 8}, "expert_count: 8 is not supported: a mixture of experts"),
    "OLMo 3": ("olmo2", {"attention.sliding_window": 128}, "attention.sliding_window: 128 is not supported: OLMo 3"),
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
    assert expected in refusal(changed(family, keys)).removeprefix(f"{family}.")


def test_a_draft_block_alone_is_called_that() -> None:
    blocks = {name: None for name in contents_of("llama").tensors if name.startswith("blk.0.")}
    assert "the draft block (MTP) of a model alone" in refusal(changed("llama", {"nextn_predict_layers": 1}, blocks))


def test_blocks_that_only_draft_are_left_out() -> None:
    blocks = {f"blk.1.{name[6:]}": like("llama", name) for name in contents_of("llama").tensors if name[:4] == "blk."}
    found = model_of(changed("llama", {"block_count": 2, "nextn_predict_layers": 1}, blocks))
    assert found.config == model_of(contents_of("llama")).config
    assert "blk.1." in refusal(changed("llama", {"block_count": 1}, blocks))


def test_what_is_for_rounded_activations_is_left_out() -> None:
    name = "blk.0.attn_q.input_scale"
    one = like("llama", "output_norm.weight", name=name, shape=(1,))
    assert model_of(changed("llama", tensors={name: one})).weights == model_of(contents_of("llama")).weights


@pytest.mark.parametrize("family", FAMILIES)
def test_a_scale_of_more_than_one_number_is_refused(family: str) -> None:
    name = "blk.0.ffn_down.scale"
    two = like(family, "output_norm.weight", name=name, shape=(2,))
    assert name in refusal(changed(family, tensors={name: two}))
