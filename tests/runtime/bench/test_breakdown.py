"""Bytes of rows are those of the arrays they point to, the parts of a step add up to it, and a run says so."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from stratakv.kernels.compiled import record as r
from stratakv.runtime.bench import bandwidths
from stratakv.runtime.bench.breakdown import (
    OPERATIONS,
    StepParts,
    middle,
    read_bytes,
    summary,
    total_only,
)
from stratakv.runtime.bench.options import BenchOptions, Caps
from stratakv.runtime.bench.report import breakdown_table, describe_row
from stratakv.runtime.bench.run import run_bench


def row(mark: int, **fields: int) -> np.ndarray:
    found = np.zeros(r.WIDTH, dtype=np.int64)
    found[[r.MARK, r.ITEMS]] = mark, 1
    for name, value in fields.items():
        found[getattr(r, name)] = value
    return found


def nbytes(*shape: int, dtype: torch.dtype = torch.float32) -> int:
    return torch.empty(shape, dtype=dtype).nbytes


@pytest.mark.parametrize("mark", [r.M_QKV, r.M_OUT, r.M_GATE_UP, r.M_DOWN, r.M_HEAD])
@pytest.mark.parametrize(
    ("kind", "weight"),
    [(r.F32, 48 * 1024), (r.BF16, 48 * 512), (r.I8, 48 * (256 + 4)), (r.Q8_0, 48 * 8 * 34), (r.Q6_K, 48 * 210)],
)
def test_a_product_reads_its_weight_once_for_a_batch(mark: int, kind: int, weight: int) -> None:
    shape = {"P_BATCH": 3, "P_ROWS": 48, "P_COLUMNS": 256, "P_KIND": kind}
    assert read_bytes(row(mark, **shape)) == weight
    assert read_bytes(row(mark, **shape, P_BIAS=1)) == weight + nbytes(48)


def test_experts_are_read_for_each_sequence() -> None:
    shape = {"P_ROWS": 48, "P_COLUMNS": 256, "P_KIND": r.BF16, "P_CHOSEN": 2}
    assert read_bytes(row(r.M_GATE_UP, **shape, P_BATCH=3, P_INPUT=r.SUM)) == 3 * 2 * 48 * 512
    assert read_bytes(row(r.M_DOWN, **shape, P_BATCH=3 * 2, P_INPUT=r.GATED)) == 3 * 2 * 48 * 512


@pytest.mark.parametrize("units", [1, 256, 257, 1000])
def test_scores_read_what_the_index_keeps(units: int) -> None:
    groups, dim, span = 3, 24, 256
    common = {"ITEMS": groups * -(-units // span), "S_UNITS": units, "S_SPAN": span, "S_DIM": dim}
    for kind, dtype in ((r.F32, torch.float32), (r.BF16, torch.bfloat16)):
        expected = nbytes(groups, units, 2 * dim, dtype=dtype)
        assert read_bytes(row(r.M_SCORES, **common, S_KIND=kind)) == expected
    codes, anchors = (
        nbytes(groups, units, 6, dtype=torch.uint8),
        nbytes(groups, -(-units // 32), dim, dtype=torch.bfloat16),
    )
    coded = row(r.M_SCORES, **common, S_CODE_PARTS=6, S_CODE_DIM=4, S_SEGMENT=32)
    assert read_bytes(coded) == codes + anchors
    tables = row(r.M_TABLES, **{**common, "ITEMS": groups * 6}, S_CODE_PARTS=6, S_CODE_DIM=4)
    assert read_bytes(tables) == nbytes(groups, 24, dim) + nbytes(groups, 6, 4, 256)


def test_attention_reads_the_chosen_units_and_the_rows_behind() -> None:
    chosen = {"A_GROUPS": 3, "A_DIM": 24, "A_COUNT": 7, "A_UNIT": 8, "A_KV_KIND": r.BF16}
    behind = {"A_TAIL_LEN": 5, "A_TAIL_KIND": r.F32}
    both = nbytes(2, 3, 56, 24, dtype=torch.bfloat16) + nbytes(2, 3, 5, 24)
    assert read_bytes(row(r.M_ATTENTION, **chosen, **behind)) == both
    assert read_bytes(row(r.M_ATTENTION, **{**chosen, "A_COUNT": 0}, **behind)) == nbytes(2, 3, 5, 24)


@pytest.mark.parametrize("mark", OPERATIONS)
def test_a_row_without_items_reads_nothing(mark: int) -> None:
    assert read_bytes(row(mark, ITEMS=0, P_ROWS=9, P_COLUMNS=9, S_UNITS=9, A_GROUPS=9, A_COUNT=9)) == 0


def steps(count: int) -> list[StepParts]:
    """Steps of drawn times, none of which reaches its step's."""
    rng = np.random.default_rng(count)
    found = []
    for _ in range(count):
        operations, between = rng.random(len(OPERATIONS)), float(rng.random())
        operations[r.NO_MARK] = 0
        prepare, waits = float(rng.random()), between * float(rng.random())
        step_s = operations.sum() + between + prepare + float(rng.random())
        found.append(StepParts(step_s, operations, 1e9 * rng.random(len(OPERATIONS)), prepare, between, waits))
    return found


@pytest.mark.parametrize(("count", "kept"), [(1, 1), (2, 2), (3, 3), (4, 2), (7, 5), (256, 128)])
def test_the_middle_half_is_without_the_fastest_and_the_slowest(count: int, kept: int) -> None:
    drawn = steps(count)
    times, found = sorted(step.step_s for step in drawn), [step.step_s for step in middle(drawn)]
    cut = (count - kept) // 2
    assert found == times[cut : cut + kept]


@pytest.mark.parametrize("count", [1, 2, 5, 40])
def test_parts_add_up_to_the_step_and_shares_are_bytes_over_time(count: int) -> None:
    found = summary(steps(count), memory=2e9)
    parts, total = found["parts"], found["total"]
    assert sum(part["took_ms"] for part in parts) == pytest.approx(total["took_ms"], rel=1e-12)
    assert total["took_ms"] == pytest.approx(1e3 * np.mean([step.step_s for step in middle(steps(count))]))
    assert all(part["took_ms"] > 0 for part in parts)
    assert "unmarked" not in [part["operation"] for part in parts]
    for part in [*parts, total]:
        if part["read_bytes"] is not None:
            assert part["memory_share"] == pytest.approx(part["read_bytes"] / (part["took_ms"] / 1e3) / 2e9)
    assert [part["operation"] for part in parts[-4:]] == ["prepare", "between", "waits", "other"]
    assert [part["read_bytes"] is None for part in parts] == (len(parts) - 4) * [False] + 4 * [True]


def test_waits_are_told_apart_only_as_far_as_they_are_between_tables() -> None:
    nothing = np.zeros(len(OPERATIONS))
    for waits, expected in ((2.0, [2.0, 3.0, 7.0]), (6.0, [5.0, 7.0])):
        parts = summary([StepParts(12.0, nothing, nothing, between_s=5.0, waits_s=waits)], memory=1e9)["parts"]
        assert sorted(part["took_ms"] / 1e3 for part in parts) == expected


def test_what_no_step_has_is_left_out() -> None:
    operations = np.zeros(len(OPERATIONS))
    operations[r.M_HEAD] = 2.0
    found = summary([StepParts(3.0, operations, 0 * operations)], memory=1e9)
    assert found["parts"] == [
        {"operation": "head", "took_ms": 2000.0, "read_bytes": None, "memory_share": None},
        {"operation": "other", "took_ms": 1000.0, "read_bytes": None, "memory_share": None},
    ]


def test_pytorchs_steps_have_a_total_only() -> None:
    total = {"took_ms": 3000.0, "read_bytes": None, "memory_share": None}
    assert total_only([9.0, 4.0, 2.0, 1.0]) == {"form": "pytorch", "averaged_steps": 2, "parts": [], "total": total}


# A run

TINY: dict[str, Any] = {
    "shape": "tiny", "dtype": "float32", "budget": 112, "contexts": (600,), "steps": 6, "turn_tokens": 8,
    "baselines": (), "breakdown": True,
}  # fmt: skip


@pytest.fixture(autouse=True)
def _small_probes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bandwidths, "_MEMORY_BYTES", dict.fromkeys(bandwidths._MEMORY_BYTES, 1 << 20))
    monkeypatch.setattr(bandwidths, "_LINK_BYTES", 1 << 20)
    monkeypatch.setattr(bandwidths, "_DISK_BYTES", 1 << 20)


def test_a_run_tells_what_its_operations_took(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STRATAKV_COMPILED", "1")
    result = run_bench(BenchOptions(**TINY, indexes=("bounds", "spectral"), kv_dir=tmp_path), lambda line: None)
    (found,) = json.loads(json.dumps(result["rows"]))
    coded = ["score tables"]
    for one, tables in zip(found["contestants"], ([], coded), strict=True):
        for turn in (one["first_turn"], one["second_turn"]):
            parts = {part["operation"]: part for part in turn["breakdown"]["parts"]}
            assert list(parts) == [
                "q k v", "rotate and append", *tables, "scores", "choice", "attention", "output", "gate and up", "down",
                "head", "prepare", "other",
            ]  # fmt: skip
            total = turn["breakdown"]["total"]
            assert sum(part["took_ms"] for part in parts.values()) == pytest.approx(total["took_ms"])
            assert all(part["took_ms"] > 0 for part in parts.values())
            weights = sum(parts[name]["read_bytes"] for name in ("q k v", "output", "gate and up", "down", "head"))
            assert weights == 4 * (3 * (48 * (48 + 2 * 16) + 48 * 48 + 3 * 48 * 80) + 259 * 48)
            assert parts["attention"]["read_bytes"] == pytest.approx(turn["roofline"]["kv_bytes"], rel=0.05)
        lines = list(breakdown_table(one["first_turn"]["breakdown"]))
        assert max(map(len, lines)) <= 100
        assert set(lines) < set(describe_row(found))


def test_what_comes_between_tables_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a device tier, layers come one by one and fetch what they read."""
    monkeypatch.setenv("STRATAKV_COMPILED", "1")
    options = BenchOptions(**TINY, caps=(Caps(gpu_gb=0.00045, host_gb=0.01),), kv_dir=tmp_path)
    (one,) = run_bench(options, lambda line: None)["rows"][0]["contestants"]
    parts = {part["operation"]: part for part in one["first_turn"]["breakdown"]["parts"]}
    assert {"between", "attention", "scores"} < parts.keys()
    assert sum(part["took_ms"] for part in parts.values()) == pytest.approx(
        one["first_turn"]["breakdown"]["total"]["took_ms"]
    )
    assert parts["attention"]["read_bytes"] == pytest.approx(one["first_turn"]["roofline"]["kv_bytes"], rel=0.05)


def test_pytorchs_form_says_that_it_cannot_tell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STRATAKV_COMPILED", "0")
    (found,) = run_bench(BenchOptions(**TINY, kv_dir=tmp_path), lambda line: None)["rows"]
    assert found["contestants"][0]["first_turn"]["breakdown"]["parts"] == []
    assert any("PyTorch computes these steps" in line for line in describe_row(found))
