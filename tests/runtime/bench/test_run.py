"""`stratakv bench` on a tiny model of random weights: what it reports is what happened."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from bench_runs import TINY, silent, small_probes

from stratakv.runtime.api.errors import DoesNotFitError
from stratakv.runtime.bench.options import BenchOptions, Caps
from stratakv.runtime.bench.report import crossovers
from stratakv.runtime.bench.run import run_bench

TIGHT = Caps(gpu_gb=0.00045, host_gb=0.0001, disk_gb=0.1)


@pytest.fixture(autouse=True, scope="module")
def _small_probes() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        small_probes(patch)
        yield


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Two contexts, two batches, two indexes, roomy tiers and tight ones."""
    lines: list[str] = []
    options = BenchOptions(
        **TINY, batches=(1, 2), indexes=("bounds", "spectral"), caps=(Caps(), TIGHT),
        baselines=("dense", "offloaded"), kv_dir=tmp_path_factory.mktemp("stores"),
        trace=tmp_path_factory.mktemp("trace") / "steps.json",
    )  # fmt: skip
    found = run_bench(options, lines.append)
    return {**json.loads(json.dumps(found)), "lines": lines, "given": options}


def turns(result: dict[str, Any]) -> list[tuple[dict[str, Any], dict[str, Any], dict[str, Any]]]:
    """(row, contestant, turn) of all."""
    return [
        (row, one, one[turn])
        for row in result["rows"]
        for one in row["contestants"]
        for turn in ("first_turn", "second_turn")
    ]


def of_ours(result: dict[str, Any]) -> list[tuple[dict[str, Any], dict[str, Any], dict[str, Any]]]:
    return [found for found in turns(result) if "index" in found[1]]


def test_every_combination_is_a_row_or_a_line_in_it(result: dict[str, Any]) -> None:
    assert [(row["context"], row["batch"]) for row in result["rows"]] == [(200, 1), (200, 2), (700, 1), (700, 2)]
    tight = "gpu 0.00045 GB, host 0.0001 GB, disk 0.1 GB"
    for row in result["rows"]:
        names = [one["name"] for one in row["contestants"]]
        of_both = [f"stratakv {index}{caps}" for index in ("bounds", "spectral") for caps in ("", f" ({tight})")]
        assert names == [*of_both, "transformers dense float32"]
        assert row["left_out"] == {"offloaded": "transformers offloads to the host from a CUDA device only"}


def test_speeds_agree_with_each_other(result: dict[str, Any]) -> None:
    for row, _, turn in turns(result):
        assert 0 < turn["tpot_ms_p50"] <= turn["tpot_ms_p90"]
        mean_ms = 1000 * row["batch"] / turn["tokens_per_s"]
        assert 0 < mean_ms <= turn["steps"] * turn["tpot_ms_p90"]
        assert turn["ttft_s"] > 0


def test_both_turns_have_their_steps(result: dict[str, Any]) -> None:
    for _, one, _ in turns(result):
        assert (one["first_turn"]["steps"], one["second_turn"]["steps"]) == (20, 5)


def test_bytes_over_edges_are_those_the_store_counted(result: dict[str, Any]) -> None:
    for _, _, turn in of_ours(result):
        assert turn["bytes_per_step"] == {
            name: pytest.approx(count / turn["steps"])
            for name, count in turn["counters"].items()
            if name.endswith("_bytes")
        }
        reads = sum(turn["counters"][f"{tier}_reads"] for tier in ("gpu", "host", "disk"))
        assert reads > 0
        assert turn["hit_rate"] == pytest.approx(1 - turn["counters"]["disk_reads"] / reads)


def test_tight_tiers_move_bytes_and_stay_under_their_caps(result: dict[str, Any]) -> None:
    tight = [found for found in of_ours(result) if found[1]["caps"]]
    for row, one, turn in tight:
        tiers = one["tiers"]
        assert set(tiers) == {"gpu", "host", "disk"}
        for tier, given in zip(("gpu", "host", "disk"), (0.00045, 0.0001, 0.1), strict=True):
            assert tiers[tier]["used_bytes"] <= tiers[tier]["cap_bytes"] == int(1e9 * given)
        if row["context"] == 700:
            assert turn["counters"]["disk_reads"] > 0
            assert turn["bytes_per_step"]["disk_to_host_bytes"] > 0
            assert 0 < turn["stall_share"] < 1


def test_the_roofline_is_the_slowest_of_its_parts(result: dict[str, Any]) -> None:
    for _, one, turn in turns(result):
        found = turn["roofline"]
        assert found["bound_s"] == max(found["memory_s"], found["link_s"], found["disk_s"])
        if "index" in one:
            assert found["kv_bytes"] > 0
            assert found["disk_s"] * result["bandwidths"]["used"]["disk_bytes_per_s"] == pytest.approx(
                turn["bytes_per_step"]["disk_to_host_bytes"]
            )


def test_verdicts_follow_from_the_times(result: dict[str, Any]) -> None:
    for verdict in result["crossovers"]:
        times = {
            row["context"]: {one["name"]: one["first_turn"]["tpot_ms_p50"] for one in row["contestants"]}
            for row in result["rows"]
            if row["batch"] == verdict["batch"]
        }
        ahead = [c for c in (200, 700) if times[c][verdict["ours"]] < times[c][verdict["baseline"]]]
        expected = {(): None, (200,): None, (700,): 700, (200, 700): 200}[tuple(ahead)]
        assert verdict["ahead_from"] == expected
    assert sum(" against transformers dense" in line for line in result["lines"]) == len(result["crossovers"]) == 8


def test_a_trace_holds_the_decode_steps(result: dict[str, Any]) -> None:
    events = json.loads(result["given"].trace.read_text())["traceEvents"]
    assert sum(event.get("name") == "decode step" and event.get("ph") == "X" for event in events) == 4


def test_stores_are_removed(result: dict[str, Any]) -> None:
    assert list(result["given"].kv_dir.iterdir()) == []


def test_random_kv_is_labelled(tmp_path: Path) -> None:
    lines: list[str] = []
    found = run_bench(BenchOptions(**TINY, random_kv=True, baselines=("dense",), kv_dir=tmp_path), lines.append)
    for row, one, turn in turns(found):
        assert row["random_kv"]
        assert (turn["ttft_s"] is None) == (turn is one["first_turn"])
    assert any("random KV" in line for line in lines)


def test_a_smaller_card_is_kept_to(tmp_path: Path) -> None:
    """2 MB: 0.3 for the weights, 0.3 apart, what is left for KV; dense attention needs more at 5,000 tokens."""
    given = {**TINY, "contexts": (5000,)}
    options = BenchOptions(**given, gpu_memory_cap=0.002, baselines=("dense",), kv_dir=tmp_path)
    row = run_bench(options, silent)["rows"][0]
    (one,) = row["contestants"]
    weights = one["first_turn"]["roofline"]["weights_bytes"]
    assert one["tiers"]["gpu"]["cap_bytes"] < 0.85 * 2e6 - weights
    assert one["tiers"]["gpu"]["used_bytes"] <= one["tiers"]["gpu"]["cap_bytes"]
    assert "the card has 0.002 GB" in row["left_out"]["dense float32"]


def test_a_card_without_room_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="raise gpu_memory_cap"):
        run_bench(BenchOptions(**TINY, gpu_memory_cap=0.0003, kv_dir=tmp_path), silent)


@pytest.mark.parametrize(
    "changes",
    [{"contexts": (200, 2500)}, {"contexts": (1300,), "batches": (2,)}, {"contexts": (2500,), "random_kv": True}],
    ids=["context", "batch", "random-kv"],
)
def test_what_exceeds_the_tiers_is_refused(changes: dict[str, Any], tmp_path: Path) -> None:
    options = BenchOptions(**{**TINY, **changes}, caps=(Caps(host_gb=0.0012, disk_gb=0),), kv_dir=tmp_path)
    with pytest.raises(DoesNotFitError, match="raise host_gb"):
        run_bench(options, silent)
    assert list(tmp_path.iterdir()) == []


def row(context: int, **times: float) -> dict[str, Any]:
    turns = [{"name": name, "first_turn": {"tpot_ms_p50": ms}} for name, ms in times.items()]
    return {"context": context, "batch": 1, "contestants": turns}


@pytest.mark.parametrize(
    ("theirs", "ahead_from"),
    [((9, 9, 9), 100), ((9, 4, 9), 300), ((4, 9, 9), 200), ((9, 9, 4), None), ((5, 5, 5), None)],
)
def test_ahead_means_at_every_longer_context(theirs: tuple[float, ...], ahead_from: int | None) -> None:
    rows = [row(context, stratakv=5, other=ms) for context, ms in zip((100, 200, 300), theirs, strict=True)]
    (found,) = crossovers(rows[::-1])
    assert found["ahead_from"] == ahead_from
    assert found["contexts"] == [100, 200, 300]


def test_a_baseline_that_is_not_installed_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = importlib.util.find_spec
    absent = {"optimum", "hqq", "xllamacpp"}
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name in absent else found(name, *a))
    given = {**TINY, "contexts": (64,), "steps": 1}
    row = run_bench(BenchOptions(**given, baselines=("quantised", "llama.cpp"), kv_dir=tmp_path), silent)["rows"][0]
    assert row["left_out"] == {
        "quantised": "needs optimum-quanto or hqq: pip install optimum-quanto",
        "llama.cpp": "needs xllamacpp: pip install 'stratakv[compare]'",
    }


def test_untimed_steps_are_in_the_context(result: dict[str, Any]) -> None:
    """Four at the beginning of a turn, one at the beginning of a later stint: what dense reads grows by them."""
    stints = [range(4, 20), range(21, 25)]
    for row, one, _ in turns(result):
        if one["name"].startswith("transformers"):
            per_token = 2 * 3 * 2 * 8 * 4 * row["batch"]
            held = [row["context"] + step + 1 for block in stints for step in block]
            assert one["first_turn"]["roofline"]["kv_bytes"] == pytest.approx(sum(held) / len(held) * per_token)
