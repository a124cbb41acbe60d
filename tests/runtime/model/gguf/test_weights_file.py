"""The weights that are written are those that the GGUF file was made from, to the bit, and take little memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gguf_contents import FAMILIES, contents_of, weights_of
from gguf_models import random_model, write_gguf, write_raw
from gguf_weights import ONE_MORE, of_delta_net
from torch import Tensor

from stratakv.runtime.model.gguf import number_types
from stratakv.runtime.model.gguf.architectures import ARCHITECTURES
from stratakv.runtime.model.gguf.directory import read_model
from stratakv.runtime.model.gguf.weights_file import write_weights
from stratakv.runtime.model.tensors import _spelled, split_experts
from stratakv.runtime.untrusted.families import FAMILIES as SUPPORTED


def as_read(family: str, name: str, weight: Tensor, config: Any) -> Tensor:
    """A weight as it comes back: heads of values in the file's order, and what is rounded there and here."""
    if ".linear_attn." in name and family != "qwen3next":
        ((_, moved),) = of_delta_net(family, name, weight, config)
        weight = moved.view(weight.shape) if "A_log" not in name else -moved
    if name.endswith("A_log"):
        return torch.from_numpy(np.log((weight.exp() if family == "qwen3next" else weight).numpy()))
    return (weight + 1) - 1 if family in ONE_MORE and "norm" in name and "linear_attn" not in name else weight


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("family", FAMILIES)
def test_weights_are_those_that_the_file_was_written_from(
    family: str, dtype: torch.dtype, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(number_types, "_CHUNK", 200)  # a few rows at a time
    model = random_model(family, num_hidden_layers=2)
    spelled = SUPPORTED[ARCHITECTURES[family].family].spelled
    made = weights_of(write_gguf(tmp_path / "m.gguf", model, family), tmp_path, dtype)
    found = {_spelled(name, spelled): weight for name, weight in made.items()}
    expected = {
        name: as_read(family, name, weight, model.config).to(
            torch.float32 if family == "deepseek2" and ".mlp.gate." in name else dtype
        )
        for whole, numbers in model.state_dict().items()
        for name, weight in split_experts(whole, numbers, is_turned=family == "gpt-oss").items()
        if not (model.config.tie_word_embeddings and name == "lm_head.weight")
    }
    assert found.keys() == expected.keys()
    assert [name for name, weight in expected.items() if not torch.equal(found[name], weight)] == []


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
