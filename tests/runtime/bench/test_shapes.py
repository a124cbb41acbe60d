"""Random models have the shapes of the models that they stand for, and fit the memory that there is."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from bench_runs import TINY, silent

from stratakv.runtime.api.errors import DoesNotFitError
from stratakv.runtime.bench.options import BenchOptions
from stratakv.runtime.bench.run import run_bench
from stratakv.runtime.bench.shapes import SHAPES, random_model

CPU = torch.device("cpu")


def test_layers_that_a_shape_has_not_and_weights_that_memory_has_no_room_for_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cpu = torch.device("cpu")
    with pytest.raises(ValueError, match=r"layers is at most 30 for smollm2-135m, not 31"):
        random_model("smollm2-135m", tmp_path, cpu, torch.float32, 512, 31)
    monkeypatch.setattr("stratakv.runtime.bench.shapes.available_memory", lambda: 10**5)
    with pytest.raises(DoesNotFitError, match=r"tiny does not fit: 0\.000\d+ GB of weights, and 0\.0001 GB of memory"):
        random_model("tiny", tmp_path, cpu, torch.float32, 512, None)


def test_an_unknown_shape_is_refused_with_those_known(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"shape is one of {', '.join(SHAPES)}; not 'llama-9'"):
        run_bench(BenchOptions(**{**TINY, "shape": "llama-9"}, kv_dir=tmp_path), silent)


@pytest.mark.parametrize(
    ("name", "billions"),
    [("smollm2-135m", 0.1345), ("llama-3.2-1b", 1.236), ("llama-3.1-8b", 8.030), ("mistral-7b-v0.3", 7.248),
     ("qwen2.5-7b", 7.616), ("qwen3-8b", 8.191)],
)  # fmt: skip
def test_shapes_are_those_of_the_models(name: str, billions: float) -> None:
    """By the number of weights that their makers state."""
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model(SHAPES[name].family, **SHAPES[name].settings(131072, None))
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    assert sum(weight.numel() for weight in model.parameters()) / 1e9 == pytest.approx(billions, rel=1e-3)
    assert config.max_position_embeddings == 131072


def test_a_random_model_is_the_same_every_time_and_says_what_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(SHAPES, "tied", replace(SHAPES["tiny"], family="qwen2", is_tied=True))
    one, other = (random_model("tied", tmp_path, CPU, torch.bfloat16, 512, 2) for _ in range(2))
    for mine, theirs in zip(one.hf.parameters(), other.hf.parameters(), strict=True):
        assert torch.equal(mine, theirs)
    assert (one.num_layers, one.max_positions, one.dtype, one.tokenizer) == (2, 512, torch.bfloat16, None)
    assert one.hf.lm_head.weight is one.inner.embed_tokens.weight
    said = json.loads((tmp_path / "config.json").read_text())
    assert (said["model_type"], said["num_hidden_layers"], said["max_position_embeddings"]) == ("qwen2", 2, 512)


def test_the_tiny_shape_may_have_more_layers_than_it_has(tmp_path: Path) -> None:
    assert random_model("tiny", tmp_path, CPU, torch.float32, 512, 4).num_layers == 4
    with pytest.raises(ValueError, match="layers is at most 8 for tiny, not 9"):
        random_model("tiny", tmp_path, CPU, torch.float32, 512, 9)
