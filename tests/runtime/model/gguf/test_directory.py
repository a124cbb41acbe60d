"""A GGUF file becomes the model that it was written from, in whichever tensors, parts and types its numbers stand."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from gguf_cases import GEMMA4_E2B
from gguf_contents import weights_of
from gguf_models import keys_of, random_model, tokenizer_keys, write_gguf, write_raw
from gguf_weights import tensors_of

from stratakv.runtime.api.errors import ModelFileError
from stratakv.runtime.model.gguf import number_types
from stratakv.runtime.model.gguf.container import read_gguf
from stratakv.runtime.model.gguf.directory import read_model
from stratakv.runtime.model.gguf.number_types import values

KINDS = gguf.GGMLQuantizationType


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


def test_layers_that_share_need_no_keys_and_have_a_source(tmp_path: Path) -> None:
    """Published directories have keys that nobody reads, and so may a file of one."""
    model = random_model("gemma4", **GEMMA4_E2B)
    held, keys = tensors_of("gemma4", model), keys_of("gemma4", model) | tokenizer_keys()
    for part in ("attn_k", "attn_v", "attn_k_norm"):
        held[f"blk.5.{part}.weight"] = held[f"blk.3.{part}.weight"]
    found = weights_of(write_raw(tmp_path / "m.gguf", "gemma4", keys, held.items()), tmp_path)
    assert torch.equal(found["model.inputs.table"], model.state_dict()["model.embed_tokens_per_layer.weight"])
    assert not any(".5.self_attn.k" in name for name in found)
    alone = keys | {"gemma4.attention.shared_kv_layers": 5, "gemma4.feed_forward_length": 96}
    with pytest.raises(ModelFileError, match="num_kv_shared_layers: 5 of 6 layers, so none that are full_attention"):
        read_model(write_raw(tmp_path / "alone.gguf", "gemma4", alone, held.items()))


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
