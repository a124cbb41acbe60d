"""The exactness suite passes, and goes red for each way of being wrong that it is there for."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from exact_runs import Silent, Small
from typer.testing import CliRunner

from stratakv.kernels import merge_states, topk_pages
from stratakv.retrieval.indexes import bounds, oracle
from stratakv.runtime.cli.app import app
from stratakv.runtime.evaluation.suites import exact
from stratakv.runtime.evaluation.suites.check import Check
from stratakv.runtime.layers import span
from stratakv.runtime.layers.tiered import TieredLayer
from stratakv.runtime.model.model import Model
from stratakv.runtime.process import compiled

PARTS = ("kernels", "_against_transformers", "_everything", "_part", "_pieces", "_threads", "_tiers", "_resume")


def only(part: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a run of the suite make no other checks than those of one part."""
    for other in PARTS:
        if other != part:
            monkeypatch.setattr(exact, other, lambda *_: iter(()))


def only_index(index: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let it read a part of the context with no other index than this one."""
    part = exact._part

    def of_one(runtime: Any, name: str, *rest: Any) -> Iterator[Check]:
        return part(runtime, name, *rest) if name == index else iter(())

    monkeypatch.setattr(exact, "_part", of_one)


def failed(model: Path, part: str, monkeypatch: pytest.MonkeyPatch, index: str = "bounds") -> list[str]:
    """Names of the failing checks of one part, of one index."""
    only_index(index, monkeypatch)
    only(part, monkeypatch)
    monkeypatch.setattr(exact, "_STEPS", 8)  # one page is sealed in them
    monkeypatch.setattr(exact, "_GREEDY", 8)
    result = exact.run(Small(str(model), "cpu"), ["bounds"], 0, Silent())
    return [check["name"] for check in result["checks"] if not check["passed"]]


def test_all_checks_pass_from_the_command_line(tiny_llama: Path, tmp_path: Path) -> None:
    out, picture = tmp_path / "exact.json", tmp_path / "exact.png"
    run = CliRunner().invoke(
        app, ["eval", "--suite", "exact", "-m", str(tiny_llama), "--out", str(out), "--plot", str(picture)]
    )
    assert run.exit_code == 0, run.output
    assert "all checks passed" in run.output
    result = json.loads(out.read_text())
    assert result["passed"]
    assert {"suite", "command", "hardware", "model", "seed", "elapsed_s"} <= set(result)
    names = " ".join(check["name"] for check in result["checks"])
    for part in ("float64", "transformers", "window,", "bounds,", "oracle,", "pieces", "threads", "tiers", "kill"):
        assert part in names
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_rope_off_by_one_position(tiny_llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tables = Model.tables
    monkeypatch.setattr(Model, "tables", lambda self, start, stop, *reach: tables(self, start + 1, stop + 1, *reach))
    assert "dense logits = transformers" in failed(tiny_llama, "_against_transformers", monkeypatch)


def test_one_page_swapped_with_another(tiny_llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a layer's table of pages. Dense attention cannot see it, nor can any run that reads both."""
    finish = TieredLayer.finish

    def swapping(self: TieredLayer, *arguments: Any) -> None:
        finish(self, *arguments)
        self.pids[[2, 30]] = self.pids[[30, 2]]

    monkeypatch.setattr(TieredLayer, "finish", swapping)
    assert "bounds, a part read = plain tensors" in failed(tiny_llama, "_part", monkeypatch)


def test_the_merge_drops_a_part(tiny_llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    merge = merge_states.merge_states

    def dropping(outs: list[Any], lses: list[Any]) -> Any:
        return merge(outs[: max(1, len(outs) - 1)], lses[: max(1, len(lses) - 1)])

    monkeypatch.setattr(span, "merge_states", dropping)
    assert "dense logits = transformers" in failed(tiny_llama, "_against_transformers", monkeypatch)


def test_a_stale_index_after_append(tiny_llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    append = bounds.BoundsIndex.append

    def once(self: bounds.BoundsIndex, state: Any, keys: Any, queries: Any = None) -> None:
        if not state.count:
            append(self, state, keys, queries)

    monkeypatch.setattr(bounds.BoundsIndex, "append", once)
    assert "bounds, choices that a new index makes otherwise" in failed(tiny_llama, "_part", monkeypatch)


@pytest.mark.parametrize("index", [bounds, oracle])
def test_sinks_not_forced(tiny_llama: Path, monkeypatch: pytest.MonkeyPatch, index: Any) -> None:
    monkeypatch.setenv(compiled.SWITCH, "0")
    chosen = topk_pages.topk_pages
    monkeypatch.setattr(
        index, "topk_pages", lambda scores, count, *, sink, local: chosen(scores, count, sink=0, local=local)
    )
    name = index.__name__.rpartition(".")[2]
    assert f"{name}, steps without sinks or window, or over budget" in failed(tiny_llama, "_part", monkeypatch, name)


def test_sinks_not_forced_by_compiled_loops(tiny_llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    counts = bounds.BoundsIndex.counts
    monkeypatch.setattr(bounds.BoundsIndex, "counts", lambda self, budget: counts(self, budget)._replace(sink=0))
    assert "bounds, steps without sinks or window, or over budget" in failed(tiny_llama, "_part", monkeypatch)


def test_a_check_that_raises_has_failed(tiny_llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(self: Any, *arguments: Any) -> None:
        raise ValueError("no such page")

    for way in ("select", "scoring"):
        monkeypatch.setattr(bounds.BoundsIndex, way, broken)
    only_index("bounds", monkeypatch)
    only("_part", monkeypatch)
    run = CliRunner().invoke(app, ["eval", "--suite", "exact", "-m", str(tiny_llama)])
    assert run.exit_code == 1
    assert "FAILED ValueError: no such page" in run.output
