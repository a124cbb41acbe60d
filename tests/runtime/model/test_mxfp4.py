"""Packed weights of experts become transformers' numbers to the bit, wherever their parts are."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from as_transformers import CPU
from safetensors.torch import load_file, save_file
from tiny_models import save_tiny_model

from stratakv.runtime.api.errors import ModelFileError
from stratakv.runtime.model.model import Model
from stratakv.runtime.model.mxfp4 import expanded, part_of


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_numbers_are_transformers(dtype: torch.dtype) -> None:
    from transformers.integrations.mxfp4 import convert_moe_packed_tensors

    blocks, scales = torch.arange(256, dtype=torch.uint8).view(2, 4, 2, 16), torch.arange(110, 126, dtype=torch.uint8)
    scales = scales.view(2, 4, 2)
    expected = convert_moe_packed_tensors(blocks, scales, dtype=dtype)
    assert torch.equal(expanded(blocks, scales, dtype).transpose(1, 2), expected)


def test_which_part_a_tensor_is() -> None:
    assert part_of("a.gate_up_proj_blocks") == ("a.gate_up_proj", "_blocks")
    assert part_of("a.down_proj_scales") == ("a.down_proj", "_scales")
    assert part_of("a.down_proj_bias") == ("a.down_proj_bias", "")


def test_a_packed_directory_is_the_model_of_its_numbers(tmp_path: Path) -> None:
    """In two files, which have a weight's blocks and scales apart."""
    plain = save_tiny_model(tmp_path / "plain", "gpt_oss", hidden_size=64)
    packed = save_tiny_model(tmp_path / "packed", "gpt_oss", hidden_size=64)
    weights = load_file(plain / "model.safetensors")
    parts: list[dict[str, torch.Tensor]] = [{}, {}]
    for name, weight in list(weights.items()):
        if name.endswith((".gate_up_proj", ".down_proj")) and ".experts." in name:
            count, columns, rows = weight.shape
            draw = torch.Generator().manual_seed(len(name))
            blocks = torch.randint(0, 256, (count, rows, columns // 32, 16), generator=draw, dtype=torch.uint8)
            scales = torch.randint(122, 126, (count, rows, columns // 32), generator=draw, dtype=torch.uint8)
            parts[0][f"{name}_scales"], parts[1][f"{name}_blocks"] = scales, blocks
            weights[name] = expanded(blocks, scales, torch.float32).transpose(1, 2).contiguous()
        else:
            parts[0][name] = weight
    save_file(weights, plain / "model.safetensors", {"format": "pt"})
    (packed / "model.safetensors").unlink()
    files = {name: f"model-{number}.safetensors" for number, some in enumerate(parts) for name in some}
    for number, some in enumerate(parts):
        save_file(some, packed / f"model-{number}.safetensors", {"format": "pt"})
    (packed / "model.safetensors.index.json").write_text(json.dumps({"weight_map": files}))
    path = packed / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"quantization_config": {"quant_method": "mxfp4"}}))
    models = [Model.load(folder, CPU, torch.float32) for folder in (plain, packed)]
    sides = [model.hf.state_dict() for model in models]
    assert all(torch.equal(sides[0][name], sides[1][name]) for name in sides[0])
    path.write_text(path.read_text().replace('"mxfp4"', '"awq"'))
    with pytest.raises(ModelFileError, match="quantization_config: its weights are not plain ones"):
        Model.load(packed, CPU, torch.float32)
