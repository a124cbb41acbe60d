"""Random models have the shapes of the models that they stand for, and fit the memory that there is."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from bench_runs import TINY, silent, small_probes
from hub_configs import HUB

from stratakv.runtime.api.errors import DoesNotFitError
from stratakv.runtime.bench.options import BenchOptions
from stratakv.runtime.bench.run import run_bench
from stratakv.runtime.bench.shapes import SHAPES, Shape, configuration, model_without_weights, random_weights
from stratakv.runtime.model.decoder import Decoder

CPU = torch.device("cpu")


def test_layers_that_a_shape_has_not_and_weights_that_memory_has_no_room_for_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cpu = torch.device("cpu")
    with pytest.raises(ValueError, match=r"layers is at most 30 for smollm2-135m, not 31"):
        random_weights("smollm2-135m", tmp_path, cpu, torch.float32, 512, 31)
    with pytest.raises(ValueError, match=r"none of the first 3 layers of qwen3.8-27b attends; ask for more layers"):
        random_weights("qwen3.8-27b", tmp_path, cpu, torch.float32, 512, 3)
    monkeypatch.setattr("stratakv.runtime.bench.shapes.free_memory", lambda _: 10**5)
    with pytest.raises(DoesNotFitError, match=r"tiny does not fit: 0\.000\d+ GB of weights, and 0\.0001 GB of memory"):
        random_weights("tiny", tmp_path, cpu, torch.float32, 512, None)


def test_an_unknown_shape_is_refused_with_those_known(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"shape is one of {', '.join(SHAPES)}; not 'llama-9'"):
        run_bench(BenchOptions(**{**TINY, "shape": "llama-9"}, kv_dir=tmp_path), silent)


@pytest.mark.parametrize(
    ("name", "billions"),
    [("smollm2-135m", 0.1345), ("llama-3.2-1b", 1.236), ("llama-3.1-8b", 8.030), ("mistral-7b-v0.3", 7.248),
     ("qwen2.5-7b", 7.616), ("qwen3-8b", 8.191), ("qwen3.8-27b", 26.90), ("gemma4-31b", 30.70),
     ("gemma4-e2b", 4.629), ("ministral3-14b", 13.51)],
)  # fmt: skip
def test_shapes_are_those_of_the_models(name: str, billions: float, tmp_path: Path) -> None:
    """By the number of weights that their makers state, without parts for pictures."""
    model = model_without_weights(name, tmp_path)
    assert sum(weight.numel() for weight in model.hf.parameters()) / 1e9 == pytest.approx(billions, rel=1e-3)
    assert model.num_layers == SHAPES[name].layers


def test_layers_that_share_are_the_published_ones() -> None:
    """Fewer layers are the first ones, which share less or not at all."""
    shape, published = SHAPES["gemma4-e2b"], HUB["gemma-4-E2B"]
    found = shape.settings(131072, None)
    same = found.keys() & published.keys() - {"bos_token_id", "eos_token_id"}
    assert len(same) > 15
    assert {name: found[name] for name in same} == {name: published[name] for name in same}
    assert [shape.settings(512, layers)["num_kv_shared_layers"] for layers in (12, 18, 35)] == [0, 3, 20]


@pytest.mark.parametrize(
    ("name", "first", "alike", "billions"),
    [("qwen3.6-35b-a3b", 0, 4, 34.66), ("glm-4.7-flash", 1, 1, 29.94), ("gpt-oss-20b", 0, 2, 20.91)],
)
def test_a_large_mixture_is_that_of_the_model(
    name: str, first: int, alike: int, billions: float, tmp_path: Path
) -> None:
    """By what a group of its layers has behind the `first` ones: all of it takes seconds to make."""
    shape = SHAPES[name]
    decoder = Decoder(configuration(name, tmp_path, 512, first + alike))
    few = sum(weight.numel() for weight in decoder.parameters())
    group = sum(weight.numel() for layer in decoder.model.layers[first:] for weight in layer.parameters())
    assert (few + group * ((shape.layers - first) // alike - 1)) / 1e9 == pytest.approx(billions, rel=1e-3)


HYBRID = replace(
    SHAPES["qwen3.6-35b-a3b"], layers=4, hidden=64, heads=4, kv_heads=2, head_dim=16, vocabulary=259,
    experts=(4, 2, 32),
    more={
        **SHAPES["qwen3.6-35b-a3b"].more, "shared_expert_intermediate_size": 32, "linear_num_key_heads": 2,
        "linear_num_value_heads": 4, "linear_key_head_dim": 16, "linear_value_head_dim": 16,
    },
)  # fmt: skip
SLIDING = replace(
    SHAPES["gemma4-31b"], layers=6, hidden=64, intermediate=96, heads=4, kv_heads=2, head_dim=16, vocabulary=259,
    more={**SHAPES["gemma4-31b"].more, "global_head_dim": 32, "num_global_key_value_heads": 1, "sliding_window": 64},
)  # fmt: skip

SHARING = replace(
    SHAPES["gemma4-e2b"], layers=10, sharing=5, hidden=64, intermediate=96, heads=4, head_dim=16, vocabulary=259,
    more={
        **SHAPES["gemma4-e2b"].more, "global_head_dim": 32, "sliding_window": 64, "hidden_size_per_layer_input": 12,
        "vocab_size_per_layer_input": 259,
    },
)  # fmt: skip

LATENT = replace(
    SHAPES["glm-4.7-flash"], layers=2, hidden=64, intermediate=96, heads=4, kv_heads=4, vocabulary=259,
    more={
        **SHAPES["glm-4.7-flash"].more, "kv_lora_rank": 32, "q_lora_rank": 24, "qk_nope_head_dim": 12,
        "qk_rope_head_dim": 8, "v_head_dim": 20, "n_routed_experts": 4, "num_experts_per_tok": 2,
        "moe_intermediate_size": 32,
    },
)  # fmt: skip


SINKS = replace(
    SHAPES["gpt-oss-20b"], layers=2, hidden=64, intermediate=32, heads=4, kv_heads=2, head_dim=16, vocabulary=259,
    more={**SHAPES["gpt-oss-20b"].more, "num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 64},
)  # fmt: skip


@pytest.mark.parametrize(
    "shape", [HYBRID, SLIDING, SHARING, LATENT, SINKS], ids=["hybrid", "sliding", "sharing", "latent", "sinks"]
)
def test_models_of_several_kinds_of_layers_run_beside_transformers(
    shape: Shape, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Logits are compared before anything is timed, and weights are in memory once."""
    small_probes(monkeypatch)
    monkeypatch.setitem(SHAPES, "small", shape)
    options = {**TINY, "shape": "small", "contexts": (200,), "steps": 2, "baselines": ("dense",)}
    result = run_bench(BenchOptions(**options, kv_dir=tmp_path), silent)
    assert result["logits_error"]["float32"] < 1e-4
    assert [one["name"] for one in result["rows"][0]["contestants"]] == [
        "stratakv bounds", "transformers dense float32",
    ]  # fmt: skip
    if shape is not LATENT:
        with pytest.raises(ValueError, match="needs a model whose layers are all full attention; leave out random_kv"):
            run_bench(BenchOptions(**options, random_kv=True, kv_dir=tmp_path), silent)


def test_a_random_model_is_the_same_every_time_and_says_what_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(SHAPES, "tied", replace(SHAPES["tiny"], family="qwen2", is_tied=True))
    one, other = (random_weights("tied", tmp_path, CPU, torch.bfloat16, 512, 2) for _ in range(2))
    for mine, theirs in zip(one.parameters(), other.parameters(), strict=True):
        assert torch.equal(mine, theirs)
    assert (one.config.num_hidden_layers, one.config.max_position_embeddings, one.dtype) == (2, 512, torch.bfloat16)
    assert one.lm_head.weight is one.model.embed_tokens.weight
    said = json.loads((tmp_path / "config.json").read_text())
    assert (said["model_type"], said["num_hidden_layers"], said["max_position_embeddings"]) == ("qwen2", 2, 512)


def test_the_tiny_shape_may_have_more_layers_than_it_has(tmp_path: Path) -> None:
    assert configuration("tiny", tmp_path, 512, 4).num_hidden_layers == 4
    with pytest.raises(ValueError, match="layers is at most 8 for tiny, not 9"):
        configuration("tiny", tmp_path, 512, 9)
