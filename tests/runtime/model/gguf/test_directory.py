"""A GGUF file becomes the model that it was written from: its settings, its weights to the bit, in little memory."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from gguf_contents import FAMILIES, changed, contents_of
from gguf_models import keys_of, random_model, tensors_of, tokenizer_keys, write_gguf, write_raw
from safetensors.torch import load_file

from stratakv.runtime.api.errors import ModelFileError
from stratakv.runtime.model.gguf import number_types
from stratakv.runtime.model.gguf.architectures import read_settings
from stratakv.runtime.model.gguf.container import read_gguf
from stratakv.runtime.model.gguf.directory import read_model
from stratakv.runtime.model.gguf.number_types import values
from stratakv.runtime.model.gguf.weights_file import write_weights

KINDS = gguf.GGMLQuantizationType


def weights_of(paths: list[Path], folder: Path, dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    found, made = read_model(paths), folder / "made.safetensors"
    made.unlink(missing_ok=True)
    write_weights(made, found.weights, dtype)
    return dict(load_file(made))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("family", FAMILIES)
def test_weights_are_those_that_the_file_was_written_from(
    family: str, dtype: torch.dtype, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(number_types, "_CHUNK", 200)  # a few rows at a time
    model = random_model(family, num_hidden_layers=2)
    found = weights_of(write_gguf(tmp_path / "m.gguf", model, family), tmp_path, dtype)
    is_offset = family == "gemma3"  # its file has one more than its norms: rounded once there, and once here
    expected = {
        name: ((weight + 1) - 1 if is_offset and "norm" in name else weight).to(dtype)
        for name, weight in model.state_dict().items()
        if not (model.config.tie_word_embeddings and name == "lm_head.weight")
    }
    assert found.keys() == expected.keys()
    assert [name for name, weight in expected.items() if not torch.equal(found[name], weight)] == []


def test_fused_biased_and_scaled_weights(tmp_path: Path) -> None:
    """A bias that the file leaves out is zero; q, k and v may stand in one tensor; a weight may have a factor."""
    model = random_model("llama", num_hidden_layers=1, attention_bias=True, mlp_bias=True)
    held = tensors_of("llama", model)
    del held["blk.0.ffn_down.bias"]
    for end in ("weight", "bias"):
        held[f"blk.0.attn_qkv.{end}"] = np.concatenate([held.pop(f"blk.0.attn_{part}.{end}") for part in "qkv"])
    held["blk.0.attn_qkv.scale"] = np.float32([0.25])
    held["blk.0.ffn_up.scale"] = np.float32([3.0])
    held["blk.0.ffn_up.input_scale"] = np.float32([7.0])
    paths = write_raw(tmp_path / "m.gguf", "llama", keys_of("llama", model) | tokenizer_keys(), held.items())
    found = weights_of(paths, tmp_path)
    layer = "model.layers.0."
    for name, weight in model.state_dict().items():
        factor = 0.25 if "q_proj.w" in name or "k_proj.w" in name or "v_proj.w" in name else 1.0
        factor = {f"{layer}mlp.up_proj.weight": 3.0, f"{layer}mlp.down_proj.bias": 0.0}.get(name, factor)
        assert torch.equal(found[name], weight * factor), name


def test_phi3_in_parts(tmp_path: Path) -> None:
    """llama.cpp reads q, k and v one by one where the family has them in one."""
    model = random_model("phi3", num_hidden_layers=1)
    held = tensors_of("phi3", model)
    q, k, v = np.split(held.pop("blk.0.attn_qkv.weight"), [64, 96])
    held |= {"blk.0.attn_q.weight": q, "blk.0.attn_k.weight": k, "blk.0.attn_v.weight": v}
    paths = write_raw(tmp_path / "m.gguf", "phi3", keys_of("phi3", model) | tokenizer_keys(), held.items())
    name = "model.layers.0.self_attn.qkv_proj.weight"
    assert torch.equal(weights_of(paths, tmp_path)[name], model.state_dict()[name])


def test_parts_of_a_split_file_are_one_model(tmp_path: Path) -> None:
    model = random_model("qwen2")
    parts = write_gguf(tmp_path / "split.gguf", model, "qwen2", tensors_per_part=13)
    (whole,) = write_gguf(tmp_path / "whole.gguf", model, "qwen2")
    assert len(parts) == 3
    found, expected = weights_of(parts[::-1], tmp_path), weights_of([whole], tmp_path)
    assert all(torch.equal(found[name], weight) for name, weight in expected.items())
    assert read_model(parts).config == read_model([whole]).config
    with pytest.raises(ModelFileError, match=r"part 1, 3 of the 3 parts of a split model; put all parts into one"):
        read_gguf([parts[0], parts[2]])
    with pytest.raises(ModelFileError, match="part 1, 1 of the 3 parts"):
        read_gguf([parts[0], parts[0]])


def test_no_tensor_is_in_two_parts(tmp_path: Path) -> None:
    one = [("odd", np.zeros((1, 8), np.float32))]
    parts = [write_raw(tmp_path / f"{at}.gguf", "llama", {"split.no": at, "split.count": 2}, one)[0] for at in range(2)]
    with pytest.raises(ModelFileError, match=r"1\.gguf: tensor 'odd' is in another part as well"):
        read_gguf(parts)


LIST = [1.0 + number for number in range(8)]
YARN = {"rope.scaling.type": "yarn", "rope.scaling.factor": 4.0, "rope.scaling.original_context_length": 512}
ROPE: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "nothing": ({}, {"rope_type": "default"}),
    "no base": ({"rope.freq_base": None}, {"rope_type": "default", "rope_theta": 1e4}),
    "base": ({"rope.freq_base": 5e5}, {"rope_type": "default", "rope_theta": 5e5}),
    "none": ({"rope.scaling.type": "none", "rope.scaling.factor": 4.0}, {"rope_type": "default"}),
    "linear": ({"rope.scaling.type": "linear", "rope.scaling.factor": 4.0}, {"rope_type": "linear", "factor": 4.0}),
    "no type": ({"rope.scaling.factor": 4.0}, {"rope_type": "linear", "factor": 4.0}),
    "old name": ({"rope.scale_linear": 4.0}, {"rope_type": "linear", "factor": 4.0}),
    "factor 0": ({"rope.scaling.factor": 0.0}, {"rope_type": "default"}),
    "yarn": (YARN, {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 512}),
    "yarn without an original length": (
        YARN | {"rope.scaling.original_context_length": 0},
        {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 8192},
    ),
    "yarn of its own": (
        YARN | {"rope.scaling.yarn_beta_fast": 16.0, "rope.scaling.attn_factor": 0.5,
                "rope.scaling.yarn_attn_factor": 9.0},
        {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 512, "beta_fast": 16.0,
         "attention_factor": 0.5 * (0.1 * math.log(4) + 1)},
    ),
    "attention only": (
        {"rope.scaling.attn_factor": 1.5, "rope.scaling.factor": 2.0},
        {"rope_type": "longrope", "factor": 1.0, "attention_factor": 1.5, "original_max_position_embeddings": 8192,
         "short_factor": [2.0] * 8, "long_factor": [2.0] * 8},
    ),
}  # fmt: skip


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3", "gemma3", "olmo2", "smollm3"])
@pytest.mark.parametrize("case", ROPE)
def test_positions_are_scaled_as_the_file_says(case: str, family: str) -> None:
    keys, expected = ROPE[case]
    found = read_settings(changed(family, keys))[1]["rope_parameters"]
    theta = changed(family, keys).keys.get(f"{family}.rope.freq_base", 1e4)
    count = 16 if family in ("qwen3", "gemma3") else 8
    lists = {name: value[:1] * count for name, value in expected.items() if isinstance(value, list)}
    if family == "gemma3":
        sliding, found = found["sliding_attention"], found["full_attention"]
        assert sliding["rope_theta"] == 1e4
        assert sliding.get("attention_factor", 1.0) == keys.get("rope.scaling.attn_factor", 1.0)
        assert set(sliding.get("long_factor", [1.0])) == {1.0}
    assert found == {"rope_theta": theta} | expected | lists


def with_lists(folder: Path, family: str, lists: dict[str, list[float]], keys: dict[str, Any]) -> dict[str, Any]:
    model = random_model(family, num_hidden_layers=1)
    held = tensors_of(family, model) | {f"rope_{name}.weight": np.float32(one) for name, one in lists.items()}
    said = keys_of(family, model) | tokenizer_keys() | {f"{family}.rope.{name}": one for name, one in keys.items()}
    config = read_model(write_raw(folder / "m.gguf", family, said, held.items())).config
    return dict(config["rope_parameters"])


def test_divisors_of_frequencies_are_stated_as_they_are(tmp_path: Path) -> None:
    plain = {"rope_theta": 1e4, "attention_factor": 1.0}
    found = with_lists(tmp_path, "llama", {"freqs": LIST}, {"scaling.factor": 2.0})
    expected = {"rope_type": "longrope", "factor": 1.0, "original_max_position_embeddings": 8192}
    twice = [2 * one for one in LIST]
    assert found == plain | expected | {"short_factor": twice, "long_factor": twice}
    assert with_lists(tmp_path, "llama", {"freqs": [1.0] * 8}, {}) == {"rope_type": "default", "rope_theta": 1e4}
    lists = {"factors_short": LIST, "factors_long": LIST[::-1]}
    keys = {"scaling.original_context_length": 1024, "scaling.attn_factor": 1.25}
    found = with_lists(tmp_path, "phi3", lists, keys)
    expected |= {"factor": 8.0, "original_max_position_embeddings": 1024, "attention_factor": 1.25}
    expected |= {"short_factor": LIST, "long_factor": LIST[::-1], "partial_rotary_factor": 1.0}
    assert found == plain | expected
    for wrong in ({"factors_short": LIST}, {"freqs": LIST, **lists}, {"freqs": LIST[:7]}, {"freqs": [0.0] * 8}):
        with pytest.raises(ModelFileError, match=r"m\.gguf: rope_f.*; take another file"):
            with_lists(tmp_path, "llama", wrong, {})
    for original in (0, 1):
        with pytest.raises(
            ModelFileError, match=rf"original_context_length: {original}, expected a whole number from 2"
        ):
            with_lists(tmp_path, "phi3", lists, keys | {"scaling.original_context_length": original})
    with pytest.raises(ModelFileError, match=r"rope\.scaling\.type: 'yarn' is not supported: the file has divisors"):
        with_lists(tmp_path, "llama", {"freqs": LIST}, {"scaling.type": "yarn", "scaling.factor": 2.0})
    with pytest.raises(ModelFileError, match=r"tensor 'rope_freqs\.weight': it is not supported"):
        with_lists(tmp_path, "qwen3", {"freqs": LIST * 2}, {})


SETTINGS: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "Phi-4": ("phi3", {"attention.sliding_window": 0}, {"sliding_window": None}),
    "Phi-3 mini": ("phi3", {"attention.sliding_window": 2047}, {"sliding_window": 2047}),
    "a window over all": ("phi3", {"attention.sliding_window": 8192}, {"sliding_window": None}),
    "over all, too": ("llama", {"attention.sliding_window": 8192}, {"num_hidden_layers": 1}),
    "no windows": ("gemma3", {"attention.sliding_window": 0}, {"layer_types": ["full_attention"] * 2}),
    "every second": (
        "gemma3", {"attention.sliding_window_pattern": 2}, {"layer_types": ["sliding_attention", "full_attention"]}
    ),
    "as listed": (
        "gemma3", {"attention.sliding_window_pattern": [False, True]},
        {"layer_types": ["full_attention", "sliding_attention"]},
    ),
    "as listed in numbers": (
        "gemma3", {"attention.sliding_window_pattern": [0, 1]}, {"layer_types": ["full_attention", "sliding_attention"]}
    ),
    "lists that are alike": (
        "gemma3", {"feed_forward_length": [96, 96], "attention.head_count": [4, 4]}, {"intermediate_size": 96}
    ),
    "scale as it is": ("llama", {"attention.scale": 0.25}, {"head_dim": 16}),
    "named": ("llama", {".general.name": "mistral"}, {"model_type": "llama"}),
    "no vocabulary size": ("llama", {"vocab_size": None}, {"vocab_size": 261}),
    "neutral": ("llama", {"expert_count": 0, "logit_scale": 1.0, "final_logit_softcapping": 0.0}, {"head_dim": 16}),
    "epsilon": ("qwen3", {"attention.layer_norm_rms_epsilon": 0.5}, {"rms_norm_eps": 0.5}),
    "ends": ("olmo2", {".tokenizer.ggml.bos_token_id": None}, {"bos_token_id": None, "eos_token_id": 2}),
    "no fourth layer": ("smollm3", {}, {"no_rope_layers": [1]}),
}  # fmt: skip


@pytest.mark.parametrize("case", SETTINGS)
def test_settings_are_the_files(case: str) -> None:
    family, keys, expected = SETTINGS[case]
    found = read_settings(changed(family, keys))[1]
    assert {name: found[name] for name in expected} == expected


def test_gemma_27b_is_known_by_its_layers() -> None:
    found = [
        read_settings(changed("gemma3", {"block_count": layers}))[1]["query_pre_attn_scalar"] for layers in (61, 62)
    ]
    assert found == [32, 64 // 4]


def test_a_part_of_a_head_is_rotated_exactly() -> None:
    """88 numbers of a head of which 60 are rotated: 88 * (60 / 88) is less than 60."""
    keys = {
        "embedding_length": 352,
        "attention.key_length": 88,
        "attention.value_length": 88,
        "rope.dimension_count": 60,
    }
    share = read_settings(changed("phi3", keys))[1]["rope_parameters"]["partial_rotary_factor"]
    assert int(88 * share) == 60


READABLE = [kind for kind in KINDS if number_types._is_readable(int(kind))]


def test_every_type_of_numbers_is_read_or_named(tmp_path: Path) -> None:
    assert {"F32", "BF16", "Q4_K", "IQ1_M", "TQ1_0", "MXFP4"} <= {kind.name for kind in READABLE}
    random = np.random.default_rng(0)
    tensors = []
    for kind in READABLE:
        width, size = gguf.GGML_QUANT_SIZES[kind]
        data = random.integers(0, 256, (5, 256 // width * size), dtype=np.uint8)
        plain = {KINDS.F32: np.float32, KINDS.F16: np.float16}.get(kind)
        tensors.append((kind.name, data.view(plain) if plain else data, None if plain else kind))
    path, *_ = write_raw(tmp_path / "m.gguf", "llama", tokenizer_keys(), tensors)
    held = read_gguf([path]).tensors
    for name, data, _ in tensors:
        with np.errstate(all="ignore"):
            expected = gguf.dequantize(np.ascontiguousarray(data).view(np.uint8), KINDS[name])
        for first, rows in ((0, 5), (3, 2)):
            found = np.concatenate(list(values(held[name], first, rows)))
            assert np.array_equal(found, expected[first : first + rows], equal_nan=True), name
    for kind in (41, 42, int(KINDS.I32), int(KINDS.F64), int(KINDS.Q8_K), 36):
        called = {41: "Q1_0", 42: "Q2_0", 36: "IQ4_NL_4_4"}.get(kind) or KINDS(kind).name
        (plain,) = write_raw(tmp_path / "odd.gguf", "llama", {}, [("odd", np.zeros((1, 256), np.float32))])
        whole = bytearray(plain.read_bytes())
        at = whole.index(b"odd") + 3 + 4 + 16
        whole[at : at + 4] = kind.to_bytes(4, "little")
        plain.write_bytes(whole)
        with pytest.raises(
            ModelFileError, match=rf"number type {called} is not supported \(tensor 'odd'\); take a file"
        ):
            read_gguf([plain])


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="counts memory as Linux does")
def test_a_model_is_made_in_little_memory(tmp_path: Path) -> None:
    """The largest weight is most of it, as in Gemma 3."""
    keys = {name: value for name, value in contents_of("llama").keys.items() if not name.startswith("general.")}
    held: dict[str, Any] = {
        name: np.zeros(tensor.shape, np.float32) for name, tensor in contents_of("llama").tensors.items()
    }
    held["token_embd.weight"] = held["output.weight"] = np.zeros((1 << 18, 64), np.float32)
    found = read_model(write_raw(tmp_path / "m.gguf", "llama", keys, held.items()))
    del held
    Path("/proc/self/clear_refs").write_text("5")
    before = memory("VmRSS")
    write_weights(tmp_path / "made.safetensors", found.weights, torch.bfloat16)
    size = (tmp_path / "made.safetensors").stat().st_size
    assert size > 60 << 20
    assert memory("VmHWM") - before < 0.5 * size


def memory(name: str) -> int:
    """Bytes of this process."""
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name)]
    return int(line.split()[1]) << 10


def test_the_vocabulary_is_read_as_plain_values() -> None:
    keys = contents_of("llama").keys
    assert {name: keys[name] for name in tokenizer_keys()} == tokenizer_keys()
    assert json.loads(json.dumps(dict(keys))) == dict(keys)
