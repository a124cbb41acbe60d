"""Layers without keys of their own attend to the last layer of their kind that has some."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from stratakv.runtime.api.errors import ModelFileError
from stratakv.runtime.model.sharing import check_sharing, doubles_mlp, num_writing, sources

S, F = "sliding_attention", "full_attention"


def config(kinds: list[str], shared: int, **more: Any) -> Any:
    said = {
        "model_type": "gemma4_text", "num_hidden_layers": len(kinds), "layer_types": kinds,
        "num_kv_shared_layers": shared, "hidden_size_per_layer_input": 8, "use_double_wide_mlp": True,
        "enable_moe_block": False,
    }  # fmt: skip
    return SimpleNamespace(**said | more)


def test_the_source_is_the_last_of_a_kind_that_has_keys() -> None:
    shared = config([S, S, F, S, F, S, F], 3)
    assert (num_writing(shared), sources(shared)) == (4, [0, 1, 2, 3, 2, 3, 2])
    assert [doubles_mlp(shared, at) for at in range(7)] == [False] * 4 + [True] * 3
    alone = config([S, F], 0)
    assert (num_writing(alone), sources(alone), doubles_mlp(alone, 1)) == (2, [0, 1], False)
    other = SimpleNamespace(model_type="llama", num_hidden_layers=2)
    assert (num_writing(other), sources(other), doubles_mlp(other, 1)) == (2, [0, 1], False)


@pytest.mark.parametrize(
    ("said", "problem"),
    [
        (config([S, F], 2), "num_kv_shared_layers: 2 of 2 layers, so none have keys of their own"),
        (config([S, S, F], 1), "num_kv_shared_layers: 1 of 3 layers, so none that are full_attention have keys"),
        (config([F, F], 1, hidden_size_per_layer_input=0), "but hidden_size_per_layer_input: 0; layers that share"),
        (config([F, F], 1, enable_moe_block=True), "and it has experts, which is not supported"),
    ],
)
def test_a_layer_with_nothing_to_attend_to_is_refused(said: Any, problem: str) -> None:
    with pytest.raises(ModelFileError, match=f"^config.json: .*{problem}"):
        check_sharing(Path("config.json"), said)


def test_models_that_share_nothing_are_not_looked_at() -> None:
    check_sharing(Path("config.json"), config([S], 0, hidden_size_per_layer_input=0))
