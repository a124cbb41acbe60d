"""Options that cannot be measured are refused before anything is, and caps are those of the card that is meant."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from bench_runs import TINY

from stratakv.runtime.bench.options import BenchOptions, Caps, crossed


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"contexts": (63,)}, "contexts are 64 tokens or more, not 63"),
        ({"batches": (0,)}, "batches are 1 sequence or more, not 0"),
        ({"steps": 0}, "at least 1 step"),
        ({"steps": 10**30}, f"steps: at most 1000000 can be measured, not {10**30}"),
        ({"turn_tokens": 10**9}, "turn_tokens: at most 100000000 can be measured"),
        ({"contexts": (512, 10**9)}, "contexts: at most 100000000 can be measured"),
        ({"batches": (10**6,)}, "batches: at most 1024 can be measured"),
        ({"layers": 10**6}, "layers: at most 1024 can be measured"),
        ({"profile": Path("x")}, "none of the indexes bounds needs a profile"),
        ({"baselines": ("vllm",)}, "baselines are dense, offloaded, quantised, llama.cpp, or none; not vllm"),
        ({"weights": ("own", "int3")}, "weights are own, int8, int4, not int3"),
        ({"link_gbps": 0.0}, "link_gbps is more than 0, not 0.0"),
        ({"shape": None, "layers": 2}, "layers can be chosen for a shape only"),
        ({"indexes": ("bounds", "qest")}, "not 'qest'"),
        ({"budget": 20}, "budget is at least 112 tokens"),
    ],
)
def test_impossible_options_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        BenchOptions(**{**TINY, **changes})


def test_what_a_card_leaves_is_the_cap_of_those_that_have_none() -> None:
    """15 % of the card are kept for what is neither weights nor KV."""
    options = BenchOptions(**TINY, gpu_memory_cap=10.0, caps=(Caps(host_gb=1.0), Caps(gpu_gb=2.0)))
    first, second = options.with_gpu_room(3 * 10**9).caps
    assert (first.gpu_gb, first.host_gb) == (pytest.approx(10 - 3 - 1.5), 1.0)
    assert second == Caps(gpu_gb=2.0)
    whole_card = BenchOptions(**TINY)
    assert whole_card.with_gpu_room(3 * 10**9) is whole_card
    with pytest.raises(
        ValueError, match=r"a memory cap of 10 GB leaves nothing for the KV cache: weights 8\.5 GB \+ 1"
    ):
        options.with_gpu_room(85 * 10**8)


def test_caps_are_crossed_and_named_by_what_is_given() -> None:
    found = crossed([None, 0.25], [1.0], [None, 8.0])
    assert [caps.given() for caps in found] == [
        {"host_gb": 1.0}, {"host_gb": 1.0, "disk_gb": 8.0}, {"gpu_gb": 0.25, "host_gb": 1.0},
        {"gpu_gb": 0.25, "host_gb": 1.0, "disk_gb": 8.0},
    ]  # fmt: skip
    assert [str(caps) for caps in (Caps(), found[-1])] == ["", "gpu 0.25 GB, host 1 GB, disk 8 GB"]


def test_a_profile_is_for_the_indexes_that_need_one() -> None:
    options = BenchOptions(**TINY, indexes=("bounds", "a2ats"), profile=Path("p"), kv_dtype="float16")
    bounds, a2ats = (options.kv(Path("kv"), index, Caps(disk_gb=2.0), prefetch="on") for index in options.indexes)
    assert (bounds.profile, a2ats.profile) == (None, Path("p"))
    for kv, index in ((bounds, "bounds"), (a2ats, "a2ats")):
        assert (kv.index, kv.path, kv.disk_gb, kv.prefetch, kv.dtype) == (index, Path("kv"), 2.0, "on", "float16")


def test_a_result_states_what_was_given() -> None:
    found = BenchOptions(**TINY, baselines=(), kv_dir=Path("caf\u00e9"), text=None).as_dict()
    assert (found["shape"], found["contexts"], found["kv_dir"]) == ("tiny", (200, 700), "caf\u00e9")
    assert {"text", "trace", "baselines", "gpu_memory_cap"}.isdisjoint(found)


@pytest.mark.parametrize(("steps", "later"), [(1, 1), (4, 1), (8, 2), (256, 64)])
def test_the_second_turn_has_a_quarter_of_the_steps_and_at_least_one(steps: int, later: int) -> None:
    assert BenchOptions(**{**TINY, "steps": steps}).later_steps == later
