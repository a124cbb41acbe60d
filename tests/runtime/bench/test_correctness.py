"""Nothing is timed before our logits are transformers' own, in every dtype that is timed and in fp32."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from bench_runs import TINY, silent, small_probes
from torch import Tensor

from stratakv.runtime.bench import ours
from stratakv.runtime.bench.correctness import WrongLogitsError, check_logits
from stratakv.runtime.bench.options import BenchOptions
from stratakv.runtime.bench.run import run_bench
from stratakv.runtime.bench.subject import Subject
from stratakv.runtime.engine.compiled_step import CompiledStep


@pytest.fixture(autouse=True)
def _small_probes(monkeypatch: pytest.MonkeyPatch) -> None:
    small_probes(monkeypatch)


@pytest.mark.parametrize("change", [lambda out: 1.01 * out, lambda out: out * torch.nan], ids=["scaled", "nan"])
def test_no_speed_without_right_logits(
    change: Callable[[Tensor], Tensor], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    run = CompiledStep.run
    monkeypatch.setattr(CompiledStep, "run", lambda *of: change(run(*of)))
    monkeypatch.setattr(ours.Ours, "take_stint", lambda *_: pytest.fail("timed before it was checked"))
    with pytest.raises(WrongLogitsError, match="no speed is reported"):
        run_bench(BenchOptions(**TINY, kv_dir=tmp_path), silent)


def test_a_16_bit_model_is_checked_in_fp32_as_well(tmp_path: Path) -> None:
    given = {**TINY, "dtype": "bfloat16", "contexts": (64,), "steps": 1}
    found = run_bench(BenchOptions(**given, baselines=(), kv_dir=tmp_path), silent)
    assert 1e-4 < found["logits_error"]["bfloat16"] < 5e-2
    assert found["logits_error"]["float32"] < 1e-5


def test_a_dtype_that_memory_has_no_room_for_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options, lines = BenchOptions(**{**TINY, "contexts": (64,)}, kv_dir=tmp_path), list[str]()
    subject = Subject.load(options, tmp_path, 200, silent)
    monkeypatch.setattr(Subject, "has_room_for", lambda *_: False)
    assert check_logits(subject, options, tmp_path / "check", lines.append) == {}
    assert lines == []
