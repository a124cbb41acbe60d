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


def test_a_16_bit_model_is_as_near_to_fp32_as_transformers_own(tmp_path: Path) -> None:
    given = {**TINY, "dtype": "bfloat16", "contexts": (64,), "steps": 1}
    error = run_bench(BenchOptions(**given, baselines=(), kv_dir=tmp_path), silent)["logits_error"]
    assert 1e-4 < error["bfloat16"] < 5e-2
    assert error["float32"] < 1e-5
    assert 1e-4 < error["bfloat16_ours"] <= 1.25 * error["bfloat16_theirs"]


def test_rounding_is_measured_by_the_eager_attentions_where_fp32_does_not_fit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ours are as near to SDPA's there, and a fault as small as rounding itself is seen."""
    options = BenchOptions(**{**TINY, "dtype": "bfloat16", "contexts": (64,)}, kv_dir=tmp_path)
    subject = Subject.load(options, tmp_path, 200, silent)
    monkeypatch.setattr(Subject, "has_room_for", lambda *_: False)
    lines = list[str]()
    found = check_logits(subject, options, tmp_path / "check", lines.append)
    assert sorted(found) == ["bfloat16", "bfloat16_ours", "bfloat16_theirs"]
    assert len(lines) == 1
    run = CompiledStep.run
    monkeypatch.setattr(CompiledStep, "run", lambda *of: 1.05 * run(*of))
    with pytest.raises(WrongLogitsError, match=r"in bfloat16, more than .*what those of its eager attention do"):
        check_logits(subject, options, tmp_path / "again", lines.append)
