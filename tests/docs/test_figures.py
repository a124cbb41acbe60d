"""docs/FIGURES.md against everybody who prints figures: each name is in the table, each row is made where it says, and
nobody measures time by a clock of their own."""

from __future__ import annotations

import ast
import io
import json
import re
import runpy
from collections.abc import Iterator
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hand_clock import HandClock
from places import ROOT
from rich.console import Console
from typer.testing import CliRunner

from stratakv.runtime import KVConfig, Runtime
from stratakv.runtime.api.reply import Timings, Usage
from stratakv.runtime.bench import bandwidths
from stratakv.runtime.bench.breakdown import OPERATIONS, StepParts, summary
from stratakv.runtime.bench.options import BenchOptions
from stratakv.runtime.bench.run import run_bench
from stratakv.runtime.chat.documents import Read
from stratakv.runtime.cli import chat_setup, repl_report
from stratakv.runtime.cli.app import app
from stratakv.runtime.engine.engine import Engine
from stratakv.runtime.evaluation.suites import fidelity, needles, tasks
from stratakv.runtime.evaluation.variants import Variant
from stratakv.storage import Counters

TABLE = ROOT / "docs" / "FIGURES.md"
GIVEN = {
    "text", "finish_reason", "model", "device", "dtype", "weights", "kv_dtype", "index", "budget", "codec",
    "disk_error", "command", "name", "caps", "prefetch", "baseline", "context", "contexts", "batch", "random_kv",
    "ours", "label", "source", "gated", "worst_task", "intensive", "form", "operation",
}  # fmt: skip
"""What a result was made of and with, and is no figure."""
APART = {"hardware", "options", "left_out", "model"}
"""Parts of a result that have nothing else."""
OTHER_CLOCKS = {
    "slow_links.py", "compression.py", "prefetch.py", "standard_input.py", "spare_cores.py", "template_child.py",
}  # fmt: skip
"""Files that decide by it what is done next; `slow_links` also sleeps by it."""


def rows() -> dict[str, Path]:
    """By figure: the file that makes it."""
    found: dict[str, Path] = {}
    for line in TABLE.read_text().splitlines():
        cells = [cell.strip() for cell in line.strip("|").split(" | ")]
        if line.startswith("| `"):
            assert len(cells) == 4, line
            assert all(cells), line
            names = re.findall(r"`([^`]+)`", cells[0])
            assert not found.keys() & set(names), f"defined twice: {line}"
            found |= dict.fromkeys(names, ROOT / cells[3].strip("` |"))
    return found


def names(value: Any) -> Iterator[str]:
    """Of whatever a result says that is neither a list's place nor a part of what it was made with."""
    if isinstance(value, dict):
        for name, inner in value.items():
            if name in APART:
                continue
            if isinstance(inner, dict) or (isinstance(inner, list) and inner and isinstance(inner[0], dict)):
                yield from names(inner)
            else:
                yield name
    elif isinstance(value, list):
        for inner in value:
            yield from names(inner)


def unknown(value: Any) -> set[str]:
    return set(names(value)) - rows().keys() - GIVEN


@pytest.fixture(scope="module")
def runtime(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runtime]:
    with Runtime.load(tiny_llama, dtype="float32", kv=KVConfig(path=tmp_path_factory.mktemp("kv"), gpu_gb=0.01)) as it:
        yield it


def test_a_figure_is_made_where_the_table_says() -> None:
    assert len(rows()) > 80
    for name, file in rows().items():
        assert re.search(rf"\b{name}\b", file.read_text()), f"{file} does not say {name}"


def test_replies_documents_and_stores_print_what_the_table_defines(runtime: Runtime) -> None:
    chat = runtime.chat()
    chat.send("Hello.", max_new_tokens=2)
    assert unknown(runtime.stats()) == set()
    assert unknown(chat.last.timings.as_dict()) == set()
    assert {field.name for of in (Usage, Timings, Read, Counters) for field in fields(of)} <= rows().keys()


def test_bench_prints_what_the_table_defines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bandwidths, "_MEMORY_BYTES", dict.fromkeys(bandwidths._MEMORY_BYTES, 1 << 20))
    monkeypatch.setattr(bandwidths, "_LINK_BYTES", 1 << 20)
    monkeypatch.setattr(bandwidths, "_DISK_BYTES", 1 << 20)
    given: dict[str, Any] = {"shape": "tiny", "dtype": "float32", "budget": 112, "turn_tokens": 8, "kv_dir": tmp_path}
    result = run_bench(BenchOptions(**given, contexts=(64,), steps=2, baselines=("dense",)), lambda line: None)
    assert unknown(result) == set()
    times = np.ones(len(OPERATIONS))
    assert unknown(summary([StepParts(20.0, times, times)], memory=1.0)) == set()


def test_eval_prints_what_the_table_defines() -> None:
    variant = Variant("bounds", 0.1)
    scores = {"qa_1": [tasks.Score(1, np.ones(2, dtype=bool), is_empty=False)]}
    answers = [
        needles.Answer(mode, context, 0, 0.5, np.ones(7, dtype=bool)) for mode in needles.MODES for context in (0, 1)
    ]
    means = dict.fromkeys(("tokens_read", "mass", "output_error", "recall", "index_bytes", "index_fixed_bytes"), 0.5)
    seen = {name: np.zeros(fidelity.POSITIONS) for name in ("kl", "agree", "nll_change", "nll")} | {"means": means}
    parts = [tasks.row(variant, scores, scores), needles._row(variant, answers, answers)]
    for row in (*parts, fidelity._row(variant, [("novel", seen)])):
        assert {name for name in unknown(row) if not name.replace(".", "").isdigit()} == set()


def test_nobody_measures_by_a_clock_of_their_own() -> None:
    for file in [*(ROOT / "runtime").rglob("*.py"), *(ROOT / "storage").rglob("*.py")]:
        asked = {
            node.attr for node in ast.walk(ast.parse(file.read_text()))
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "time"
        }  # fmt: skip
        clocks = asked & {"perf_counter", "monotonic", "process_time", "perf_counter_ns", "monotonic_ns"}
        assert not clocks or file.name == "clock.py" or file.name in OTHER_CLOCKS, f"{file}: {clocks}"


def test_status_stats_and_example_say_what_the_store_counted(
    runtime: Runtime, capsys: pytest.CaptureFixture[str]
) -> None:
    counters = runtime.store.counters
    for name, count in asdict(Counters(disk_reads=1, host_reads=3, stall_s=2.5)).items():
        setattr(counters, name, count)
    chat, out = runtime.chat(), io.StringIO()
    stats = runtime.stats()
    assert (stats["hit_rate"], stats["stall_s"], stats["tiers"]["host"]["page_reads"]) == (0.75, 2.5, 3)
    assert repl_report.status(runtime, chat).endswith("hit rate 75%")
    repl_report.stats(Console(file=out, width=200), runtime, chat)
    assert "hit rate 75.0%, stalled 2.50 s" in out.getvalue()
    example = runpy.run_path(str(ROOT / "examples" / "chat.py"))
    example["command"](runtime, chat, "stats", "")
    assert "3 page reads" in capsys.readouterr().out


def asked(model: Path, folder: Path, *arguments: str) -> dict[str, Any]:
    common = ["-m", str(model), "--kv-dir", str(folder / "kv"), "-n", "3", "--json", "-p", "What leaves the tide?"]
    ran = CliRunner().invoke(app, ["chat", *common, *arguments])
    assert ran.exit_code == 0, ran.output
    found: dict[str, Any] = json.loads(ran.stdout)
    return found


def test_a_command_tells_a_cold_run_from_a_warm_one(
    tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Reading takes 10 s each for two documents and the question, a step 1 s, and loading the model 100 s."""
    clock = HandClock(monkeypatch)
    clock.takes(Engine, "_prefill", 10)
    clock.takes(Engine, "_step", 1)
    clock.takes(chat_setup, "begin", 100)
    files = []
    for name in ("one", "two"):
        (tmp_path / name).write_text(f"Every tide leaves something on the strand, {name}. " * 9)
        files += ["-f", str(tmp_path / name)]
    cold, warm = (asked(tiny_llama, tmp_path, *files) for _ in range(2))
    for found in (cold, warm):
        assert unknown(found) == set()
        timings, usage, documents = found["timings"], found["usage"], found["documents"]
        assert timings["prompt_n"] + timings["cache_n"] == usage["prompt_tokens"] > documents["tokens"]
        assert usage["cached_tokens"] == timings["cache_n"]
        assert (documents["ms"], timings["prompt_ms"], timings["ttft_ms"]) == (20_000, 30_000, 30_000)
        assert found["load_ms"] == 100_000
        steps = usage["completion_tokens"] - 1
        assert (timings["step_n"], timings["predicted_ms"]) == (steps, 1000 * steps)
        assert timings["predicted_per_second"] == (1 if steps else None)
    assert (cold["usage"]["cached_tokens"], cold["documents"]["cached"]) == (0, 0)
    assert warm["documents"]["cached"] > 0.9 * warm["documents"]["tokens"] > 0
    assert warm["usage"]["cached_tokens"] >= warm["documents"]["cached"]


def test_a_resumed_session_is_from_the_store(tiny_llama: Path, tmp_path: Path) -> None:
    first = asked(tiny_llama, tmp_path, "--save", "tides")
    then = asked(tiny_llama, tmp_path, "--session", "tides")
    assert (first["usage"]["cached_tokens"], first["documents"]) == (0, {"tokens": 0, "cached": 0, "ms": 0})
    assert then["usage"]["cached_tokens"] == then["timings"]["cache_n"] > first["usage"]["prompt_tokens"]
