"""Products of a decode step: with the weight as it is, or rounded to 8 bits, and what compiled loops read of either."""

from __future__ import annotations

import ctypes
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_models import save_tiny_model
from torch import Tensor

from stratakv.kernels.compiled import record
from stratakv.runtime import KVConfig, Runtime
from stratakv.runtime.model.products import Int8Product, Product, Strip

TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 3e-2}
"""As a share of the largest value: bf16 keeps 8 bits."""
BATCH = 3
WIDE = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 16}
"""Widths that 8-bit products take."""


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_int8_rounds_to_255_steps_of_a_scale_per_output(dtype: torch.dtype) -> None:
    draw = torch.Generator().manual_seed(5)
    weight = torch.randn(192, 64, generator=draw).to(dtype)
    weight[3] = 0.0
    bias, x = torch.randn(192, generator=draw).to(dtype), torch.randn(BATCH, 64, generator=draw).to(dtype)
    product = Int8Product(weight, bias)
    steps = torch.round(weight.float() / product.scale.float().unsqueeze(1)).clamp(-127, 127)
    assert torch.equal(product.weight, steps.to(torch.int8))
    assert steps.abs().amax(1)[torch.arange(192) != 3].min() >= 126, "a scale that wastes steps"
    rounded = steps * product.scale.float().unsqueeze(1)
    assert (rounded - weight.float()).abs().max() <= 0.51 * weight.float().abs().max() / 126
    expected = x.float() @ rounded.T + bias.float()
    assert (product(x) - expected).abs().max() <= TOLERANCE[dtype] * expected.abs().max()


def test_int8_decodes_near_the_own_weights_and_prefills_with_them(tmp_path: Path) -> None:
    folder = save_tiny_model(tmp_path / "model", "llama", vocab_size=320, **WIDE)
    found = {}
    for weights in ("own", "int8"):
        kv = KVConfig(path=tmp_path / weights, index="dense")
        with Runtime.load(folder, dtype="float32", weights=weights, kv=kv) as runtime:
            sequence = runtime.engine.new_sequence()
            prefilled = runtime.engine.prefill(sequence, np.arange(3, 90, dtype=np.uint32)).logits
            assert prefilled is not None
            found[weights] = prefilled, runtime.engine.decode([sequence], [7])[0], sequence.salt
            assert runtime.stats()["weights"] == weights
    assert torch.equal(found["own"][0], found["int8"][0])
    own, rounded = found["own"][1], found["int8"][1]
    assert not torch.equal(own, rounded)
    assert (own - rounded).norm() <= 0.1 * own.norm()
    assert found["own"][2] != found["int8"][2], "pages of generated tokens must not be shared between the two"


def test_int8_of_widths_that_cannot_be_multiplied_is_refused(tiny_llama: Path) -> None:
    with pytest.raises(ValueError, match=r"multiples of 64.*leave it out"):
        Runtime.load(tiny_llama, weights="int8")
    with pytest.raises(ValueError, match="own, int8, int4 or file, not 'int2'"):
        Runtime.load(tiny_llama, weights="int2")


def weight_and_bias(dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(6)
    return torch.randn(128, 64, generator=draw).to(dtype), torch.randn(128, generator=draw).to(dtype)


def read(strip: Strip) -> bytes:
    return ctypes.string_at(strip.address, strip.rows * strip.row_bytes)


@pytest.mark.parametrize(("dtype", "kind"), [(torch.float32, record.F32), (torch.bfloat16, record.BF16)], ids=str)
def test_the_strip_of_a_weight_is_its_own_memory(dtype: torch.dtype, kind: int) -> None:
    weight, bias = weight_and_bias(dtype)
    (strip,) = Product(weight, bias).strips
    assert (strip.kind, strip.rows, strip.columns, strip.scale) == (kind, 128, 64, None)
    assert strip.bias is bias
    assert read(strip) == weight.view(torch.uint8).numpy().tobytes()


@pytest.mark.parametrize(("dtype", "rounds"), [(torch.float32, False), (torch.bfloat16, True)], ids=str)
def test_the_strip_of_8_bits_has_a_scale_and_takes_x_as_fine_as_the_model_has_it(
    dtype: torch.dtype, rounds: bool
) -> None:
    product = Int8Product(*weight_and_bias(dtype))
    (strip,) = product.strips
    assert (strip.kind, strip.rows, strip.columns, strip.rounds) == (record.I8, 128, 64, rounds)
    assert strip.scale is product.scale
    assert product.dtype is strip.scale.dtype is dtype
    assert read(strip) == product.weight.numpy().tobytes()


def test_8_bits_are_for_weights_that_pytorch_multiplies() -> None:
    weight, bias = weight_and_bias(torch.float32)
    with pytest.raises(ValueError, match=r"bfloat16 or float32 on a CPU, not torch\.float16 on cpu; leave it out"):
        Int8Product(weight.half(), bias.half())
    for some in (weight[:100], weight[:, :32]):
        with pytest.raises(ValueError, match=rf"multiples of 64, not \[{some.shape[0]}, {some.shape[1]}\]; leave it"):
            Int8Product(some, None)
