"""Weights of 4 and 8 bits where a GPU multiplies with them: PyTorch's operations do what is written of them, and a
model is rounded on its way to the device."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from closeness import assert_close
from tiny_models import save_tiny_model

from stratakv.kernels.int4_product import int4_product, int4_product_reference, pack, unpack
from stratakv.runtime import KVConfig, Runtime
from stratakv.runtime.model.model import Model
from stratakv.runtime.model.packed import Int4Linear, Int8Linear, PackedLinear
from stratakv.runtime.model.packing import Packing, packed_names

pytestmark = pytest.mark.gpu

CUDA = torch.device("cuda")
SIZES = {
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 64,
}


@pytest.mark.parametrize(("rows", "columns"), [(8, 32), (24, 64), (40, 576), (4096, 1024)])
def test_codes_lie_as_pytorch_packs_them(rows: int, columns: int) -> None:
    codes = torch.randint(0, 16, (rows, columns), generator=torch.Generator().manual_seed(rows), dtype=torch.uint8)
    packed = pack(codes.to(CUDA))
    assert torch.equal(packed.cpu(), pack(codes))
    assert torch.equal(unpack(packed).cpu(), codes.to(torch.int8) - 8)


@pytest.mark.parametrize("group", [32, 64, 128])
@pytest.mark.parametrize("batch", [1, 4, 17, 64])
@pytest.mark.parametrize(("rows", "columns"), [(512, 256), (1024, 14336)])
def test_pytorchs_product_is_the_formula(rows: int, columns: int, batch: int, group: int) -> None:
    draw = torch.Generator().manual_seed(columns + batch)
    codes = torch.randint(0, 16, (rows, columns), generator=draw, dtype=torch.uint8).to(CUDA)
    scales = (torch.randn(columns // group, rows, 2, generator=draw) / 50).to(CUDA, torch.bfloat16)
    x = torch.randn(batch, columns, generator=draw).to(CUDA, torch.bfloat16)
    packed = pack(codes)
    expected = int4_product_reference(x.double().float(), packed, scales)
    assert_close("out", int4_product(x, packed, scales), expected, torch.bfloat16)


@pytest.mark.parametrize("weights", ["int4", "int8"])
def test_few_rows_and_many_are_multiplied_with_the_same_numbers(weights: str) -> None:
    weight = torch.randn(512, 256, generator=torch.Generator().manual_seed(1)).bfloat16()
    layer = Packing(weights).pack(weight, None, CUDA)
    assert isinstance(layer, Int4Linear if weights == "int4" else Int8Linear)
    x = torch.randn(layer.few + 1, 256, generator=torch.Generator().manual_seed(2)).to(CUDA, torch.bfloat16)
    expected = x.double() @ layer.widened().double().T
    assert_close("many", layer(x), expected, torch.bfloat16)
    assert_close("few", layer(x[:3]), expected[:3], torch.bfloat16)


@pytest.mark.parametrize("weights", ["int4", "int8"])
def test_a_model_comes_to_the_device_rounded(weights: str, tmp_path: Path) -> None:
    folder = save_tiny_model(tmp_path, "llama", num_hidden_layers=16, **SIZES)
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    model = Model.load(folder, CUDA, torch.bfloat16, weights)
    peak, there = torch.cuda.max_memory_allocated() - before, sum(one.nbytes for one in model.hf.parameters())
    plain = Model.load(folder, torch.device("cpu"), torch.bfloat16).hf
    assert there == Packing(weights).bytes_of(plain)
    assert peak < there + 0.5 * sum(plain.get_parameter(name).nbytes for name in packed_names(plain))
    assert all(layer.codes.is_cuda for layer in model.hf.modules() if isinstance(layer, PackedLinear))


@pytest.mark.parametrize("weights", ["int4", "int8"])
def test_steps_are_the_same_in_graphs(weights: str, tmp_path: Path) -> None:
    """Steps replay graphs from the fourth on; each is held beside one that is called."""
    folder = save_tiny_model(tmp_path / "model", "llama", **SIZES)
    kv = KVConfig(path=tmp_path / "kv", index="dense")
    with Runtime.load(folder, device="cuda", dtype="bfloat16", weights=weights, kv=kv) as runtime:
        assert runtime.stats()["weights"] == weights
        engine, model, ids = runtime.engine, runtime.model, np.arange(3, 203, dtype=np.uint32)
        found = []
        for graphs in (True, False):
            if not graphs:
                model.use_graphs(None)
            sequence = engine.new_sequence()
            logits = engine.prefill(sequence, ids, reuse=False).logits
            assert logits is not None
            found.append(torch.stack([logits, *(engine.decode([sequence], [token])[0] for token in range(5, 15))]))
        assert_close("logits", found[0], found[1], torch.bfloat16)
