"""One run of one suite: it loads the model, measures, and says on what."""

from __future__ import annotations

import itertools
import subprocess
import sys
from contextlib import ExitStack
from importlib.metadata import version
from pathlib import Path
from typing import Any

from ...retrieval.registry import index_class
from ...storage.files.file_names import as_text
from ...storage.transfer import clock
from ..api.config import KVConfig
from ..chat.runtime import Runtime
from ..process.hardware import hardware
from .harness import Harness
from .options import EvalOptions, Ticker
from .suites import exact, fidelity, needles, tasks
from .texts import Texts, is_excerpt
from .variants import DENSE, Variant, variants

READING = {"fidelity": fidelity, "needles": needles, "tasks": tasks}
SUITES = ("exact", *READING)
DEFAULT_SAMPLES = {"fidelity": 8, "needles": 8, "tasks": 4}


def evaluate(
    suite: str,
    *,
    model: str,
    device: str,
    dtype: str,
    indexes: list[str],
    budgets: list[int | float],
    options: EvalOptions,
    texts: Path | None,
    kv_dir: Path | None,
    ticker: Ticker,
) -> dict[str, Any]:
    """Run a suite. The result is JSON-serialisable, with `passed` (None where nothing but yardsticks was measured).

    Args:
        dtype: fp32 adds no noise of its own; `auto` is what a chat would use. `exact` is always fp32.
        texts: folder of the texts; None: the one that `fetch` fills.
        kv_dir: folder that keeps prefilled contexts, so that another run need not prefill them; None: none.

    Raises:
        ValueError: an unknown suite, index or placement, or a budget that cannot hold what is always read.
        MissingTextError, ModelFileError, DoesNotFitError: nothing was run.
    """
    if suite not in SUITES:
        raise ValueError(f"suite is one of {', '.join(SUITES)}; not {suite!r}")
    if suite == "needles" and options.question == "prompt":
        raise ValueError(
            "a context of suite needles has many questions, so none can be in its prompt; ask in suite tasks"
        )
    for index, budget in itertools.product(indexes, budgets):
        Variant(index, budget).config(KVConfig())  # raises for what is unknown, or if no context could be read with it
    started = clock.now()
    if suite == "exact":
        for index in indexes:
            index_class(index)
        found = exact.run(exact.Setting(model, device), indexes, options.seed, ticker)
        facts: dict[str, Any] = {"device": device, "dtype": "float32"}
    else:
        found, facts = _read(suite, model, device, dtype, indexes, budgets, options, texts, kv_dir, ticker)
    return {
        "suite": suite,
        "command": as_text(" ".join(["stratakv", *sys.argv[1:]])),
        "hardware": hardware(),
        "model": as_text(model),
        "device": facts.pop("device"),
        "version": version("stratakv"),
        "commit": commit(),
        "seed": options.seed,
        **facts,
        **found,
        "passed": _passed(found),
        "elapsed_s": round(clock.now() - started, 1),
    }


def _read(
    suite: str, model: str, device: str, dtype: str, indexes: list[str], budgets: list[int | float],
    options: EvalOptions, folder: Path | None, kv_dir: Path | None, ticker: Ticker,
) -> tuple[dict[str, Any], dict[str, Any]]:  # fmt: skip
    least = KVConfig().min_budget
    smallest = min(KVConfig(budget=budget).budget_tokens(options.ctx) for budget in budgets)
    compared = variants(indexes, budgets, least=least if suite == "fidelity" and least < smallest else None)
    texts = Texts(folder)
    for text in (texts.novels, texts.verses, texts.plays, texts.docs, texts.words):
        text()  # a missing text is told before a model is loaded
    with ExitStack() as stack:
        kept = KVConfig(path=kv_dir) if kv_dir is not None else KVConfig(disk_gb=0)
        runtime = stack.enter_context(Runtime.load(model, device=device, dtype=dtype, kv=kept))
        _check_lengths(runtime, compared, options)
        harness = Harness(runtime, compared, question=options.question)
        found = READING[suite].run(harness, options, texts, ticker)
        facts = _facts(runtime, options) | {
            "question": "sparse" if suite == "fidelity" else options.question,
            "texts": "excerpt" if is_excerpt(texts.folder) else "full",
        }  # fmt: skip
        for row, variant in zip(found["variants"], compared, strict=True):
            if "tokens_read" not in row:  # fidelity has its own probes
                row["tokens_read"] = harness.tokens_read(variant)
            exempt = [min(window, options.ctx) for window in facts["exempt_windows"]]
            read = row["tokens_read"] * facts["indexed_layers"] + sum(exempt)
            row["tokens_read_all_layers"] = read / (facts["indexed_layers"] + len(exempt))
            row["kv_bytes_per_step"] = round(read * runtime.store.layout.token_bytes)
    return found, facts


def _check_lengths(runtime: Runtime, compared: list[Variant], options: EvalOptions) -> None:
    """Raise ValueError or DoesNotFitError if the model cannot hold the contexts, or a budget reads them whole."""
    if options.ctx > runtime.model.max_positions:
        raise ValueError(
            f"ctx {options.ctx} is more than the {runtime.model.max_positions} tokens {runtime.name} knows"
        )
    runtime.check_fits(0, options.ctx, f"ctx {options.ctx}")
    for variant in compared:
        if variant.index != DENSE and variant.config(runtime.config).budget_tokens(options.ctx) >= options.ctx:
            raise ValueError(f"budget {variant.budget:g} reads all of ctx {options.ctx}; use a smaller one")


def _facts(runtime: Runtime, options: EvalOptions) -> dict[str, Any]:
    """Facts about the run. `exempt_windows` has the windows of layers that no index touches; every step reads them
    whole."""
    return {
        "device": str(runtime.model.device),
        "dtype": str(runtime.model.dtype).removeprefix("torch."),
        "weights": runtime.model.weights,
        "kv_dtype": runtime.store.layout.dtype,
        "page_size": runtime.config.page_size, "sink": runtime.config.sink, "local": runtime.config.local,
        "indexed_layers": len(runtime.model.tiered),
        "exempt_windows": [window for window in runtime.model.windows if window is not None],
        "ctx": options.ctx, "samples": options.samples,
    }  # fmt: skip


def _passed(found: dict[str, Any]) -> bool | None:
    """False if a check failed or an index misses a mark; None if too little was measured to say."""
    if "checks" in found:
        return all(check["passed"] for check in found["checks"])
    judged = [row for row in found["variants"] if "misses" in row]
    if any(row["misses"] for row in judged):
        return False
    return None if not judged or any(row["undecided"] for row in judged) else True


def commit() -> str | None:
    """The commit of the source checkout this runs from, if it is one."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return None
    run = subprocess.run(["git", "-C", str(root), "rev-parse", "--short", "HEAD"], capture_output=True, text=True)
    return run.stdout.strip() or None
