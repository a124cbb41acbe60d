"""One table and one picture of all methods, from the results of `stratakv eval` and of `placement_cost.py`.

    python examples/bench/compare_methods.py --fidelity FILE,.. --tasks FILE,.. --cost FILE --out FILE --plot FILE
        [--markdown]

Each row is a method at one budget: KL and interval of every fidelity result, what it finds over all tasks of a result
and the share of a right reply's tokens that it gets, beside dense on the same samples, and what it costs in one layer.
Nothing is measured here; the file says with which commands its numbers were made. `--markdown` prints the table that
docs have.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from builds import write_result

from stratakv.runtime.process.pictures import figure_class

Row = dict[str, Any]
Figures = Callable[[Row], tuple[float, list[float] | None] | None]
"""A row's figure and its interval; None if it has none."""
_KINDS = {"dense": "#222222", "window": "#8a8a8a", "oracle": "#2a7f3f"}
_INDEX, _PLACEMENT, _HOT = "#1f5fb4", "#d1495b", "#e08e0b"
_FIDELITY = ("kl", "kl_interval", "top1_agree", "perplexity_change", "tokens_read")
_TASK = ("dense", "other", "difference", "interval", "p_value", "n", "clusters")
_QUESTIONS = {
    "sparse": "read through what is kept",
    "exact": "read exactly, after the context",
    "prompt": "in the prompt",
}
_KV_HEADS = 3
"""Of SmolLM2, whose whole steps are measured."""
_ALL = "all tasks"
_TURNS = "turns"
"""The task whose question is of a later turn: it stands apart."""


def table(fidelity: list[Row], tasks: list[Row], cost: Row | None, whole: Row | None) -> list[Row]:
    """A row for each method and budget, in the order of the first fidelity result's KL within a budget."""
    rows: dict[tuple[str, float], Row] = {}
    for result in fidelity:
        for one in result["variants"]:
            row = rows.setdefault((one["index"], one["budget"]), _row(one))
            row["fidelity"][result["model"]] = {name: one[name] for name in _FIDELITY}
    for result in tasks:
        for one in result["variants"]:
            row = rows.setdefault((one["index"], one["budget"]), _row(one))
            scored = one["by_task"] if len(one["by_task"]) == 1 else {_ALL: one["all_tasks"]}
            row["tasks"].setdefault(_protocol(result), {}).update(
                {name: {kind: {field: of[kind][field] for field in _TASK} for kind in ("found", "forced")}
                 for name, of in scored.items()}
            )  # fmt: skip
    for text in cost["texts"] if cost is not None else []:
        for reader in text["readers"]:
            found = rows.get((reader["reader"], text["keep"]))
            if found is not None:
                found["cost"] = {name: value for name, value in reader.items() if name != "reader"}
    for name, of in _whole_steps(whole).items():
        for row in rows.values():
            if row["method"] == name and row["cost"] is None:
                row["cost"] = of
    first = fidelity[0]["model"]
    missing = {"kl": math.inf}
    return sorted(rows.values(), key=lambda row: (row["budget"], row["fidelity"].get(first, missing)["kl"]))


def _whole_steps(bench: Row | None) -> dict[str, Row]:
    """What indexes cost a whole model over dense, by index: of a result of `stratakv bench`."""
    if bench is None:
        return {}
    of = {one["index"]: one for one in bench["rows"][0]["contestants"] if "index" in one}
    tokens = bench["rows"][0]["context"] * bench["model"]["layers"] * _KV_HEADS
    base = of["dense"]["first_turn"]
    return {
        name: {
            "of": "whole model",
            "prompt_over_dense": round(one["first_turn"]["ttft_s"] / base["ttft_s"], 3),
            "step_over_dense": round(one["first_turn"]["tpot_ms_p50"] / base["tpot_ms_p50"], 3),
            "bytes_per_token": round(one["index_bytes"] / tokens, 2),
        }
        for name, one in of.items()
    }


def _protocol(result: Row) -> str:
    return f"{result['model']}, question {_QUESTIONS[result['question']]}"


def markdown(rows: list[Row], fidelity: list[Row], tasks: list[Row]) -> str:
    """Figures at both budgets, a line for each method: KL; found and forced over all tasks, and in the later turn."""
    models = [result["model"] for result in fidelity if any(row["method"] == "spectral" for row in rows)]
    models = list(dict.fromkeys(models))
    protocols = list(dict.fromkeys(_protocol(result) for result in tasks))
    heads = [f"KL, {model}" for model in models]
    heads += [f"{name}: {protocol}" for protocol in protocols for name in (_ALL, _TURNS) if _has(rows, protocol, name)]
    lines = ["| method | " + " | ".join(heads) + " | prompt, step, bytes a token |", "|---" * (len(heads) + 2) + "|"]
    budgets = sorted({row["budget"] for row in rows if row["method"] == "window"} & {0.1, 0.25})
    for name in dict.fromkeys(row["method"] for row in rows):
        of = {row["budget"]: row for row in rows if row["method"] == name}
        cells = [_pair(of, budgets, partial(_kl, model)) for model in models]
        cells += [
            _pair(of, budgets, partial(_shares, protocol, task))
            for protocol in protocols for task in (_ALL, _TURNS) if _has(rows, protocol, task)
        ]  # fmt: skip
        cells.append(_pair(of, budgets[:1], _cost))
        lines.append(f"| `{name}` | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _has(rows: list[Row], protocol: str, task: str) -> bool:
    return any(task in row["tasks"].get(protocol, {}) for row in rows)


def _pair(of: dict[float, Row], budgets: list[float], cell: Callable[[Row], str]) -> str:
    """A method's cells at each budget; a method that has one row, at whatever budget, has it for all."""
    found = []
    for budget in budgets if len(of) > 1 else list(of):
        try:
            found.append(cell(of[budget]))
        except (KeyError, TypeError):
            found.append("-")
    return ", ".join(found)


def _kl(model: str, row: Row) -> str:
    return f"{row['fidelity'][model]['kl']:.4f}"


def _shares(protocol: str, task: str, row: Row) -> str:
    of = row["tasks"][protocol][task]
    return f"{100 * of['found']['other']:.0f} / {100 * of['forced']['other']:.0f}"


def _cost(row: Row) -> str:
    cost = row["cost"]
    return f"{cost['prompt_over_dense']:.2f}, {cost['step_over_dense']:.2f}, {cost['bytes_per_token']:.1f}"


def _row(one: Row) -> Row:
    return {"method": one["index"], "budget": one["budget"], "fidelity": {}, "tasks": {}, "cost": None}


def draw(rows: list[Row], path: Path) -> None:
    """A panel for each model: KL of every method at both budgets, the best on top; and one for each model's turns."""
    models = list(next(row["fidelity"] for row in rows if row["method"] == "oracle"))
    turns = [protocol for protocol in rows[0]["tasks"] if _has(rows, protocol, _TURNS)]
    budgets = sorted({row["budget"] for row in rows if row["method"] == "window"} & {0.1, 0.25})
    names = [row["method"] for row in rows if row["budget"] == budgets[-1] and row["method"] != "dense"][::-1]
    widths = [5.5] * len(models) + [3.2] * len(turns)
    figure = figure_class()(figsize=(sum(widths), 0.8 + 0.27 * len(names)), layout="constrained")
    panels = figure.subplots(1, len(widths), sharey=True, squeeze=False, width_ratios=widths)[0]
    for axes, model in zip(panels, models, strict=False):
        _dots(axes, rows, names, budgets, partial(_kl_of, model))
        axes.set_xscale("log")
        axes.set_xlabel("mean KL from dense, nats; line: 95 %")
        axes.set_title(
            f"{model}: hollow {budgets[0]:.0%} of the context, full {budgets[-1]:.0%}", loc="left", fontsize=10
        )
    for axes, protocol in zip(panels[len(models) :], turns, strict=True):
        _dots(axes, rows, names, budgets, partial(_forced_of, protocol))
        axes.set_xlim(-3, 103)
        axes.set_xlabel("% of a later reply's tokens")
        axes.set_title(protocol.partition(",")[0], loc="left", fontsize=10)
    panels[0].set_yticks(range(len(names)), names, fontsize=8)
    figure.savefig(path, dpi=130)


def _dots(axes: Any, rows: list[Row], names: list[str], budgets: list[float], figures: Figures) -> None:
    for budget in budgets:
        found = {row["method"]: figures(row) for row in rows if row["budget"] == budget}
        for place, name in enumerate(names):
            value, interval = found.get(name) or (None, None)
            if value is None:
                continue
            fill = "none" if budget == budgets[0] else "full"
            axes.plot(value, place, "o", color=_colour(name), markersize=6, fillstyle=fill)
            if interval is not None:
                axes.hlines(place, *interval, color=_colour(name), alpha=0.4, linewidth=1.5)
    axes.grid(alpha=0.3, which="both")


def _kl_of(model: str, row: Row) -> tuple[float, list[float]] | None:
    of = row["fidelity"].get(model)
    return None if of is None else (of["kl"], of["kl_interval"])


def _forced_of(protocol: str, row: Row) -> tuple[float, None] | None:
    of = row["tasks"].get(protocol, {}).get(_TURNS)
    return None if of is None else (100 * of["forced"]["other"], None)


def _colour(name: str) -> str:
    from stratakv.retrieval.placement_registry import PLACEMENTS

    if name in _KINDS:
        return _KINDS[name]
    if name.split(":")[0] not in PLACEMENTS:
        return _INDEX
    return _HOT if "mode=hot" in name else _PLACEMENT


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fidelity", required=True, help="comma-separated results")
    parser.add_argument("--tasks", default="", help="comma-separated results")
    parser.add_argument("--cost", type=Path)
    parser.add_argument("--whole", type=Path, help="a result of `stratakv bench`, for what one layer cannot tell")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--plot", type=Path)
    parser.add_argument("--markdown", action="store_true")
    asked = parser.parse_args()
    fidelity, tasks = (
        [json.loads(Path(name).read_text()) for name in listed.split(",") if name]
        for listed in (asked.fidelity, asked.tasks)
    )
    cost = json.loads(asked.cost.read_text()) if asked.cost else None
    whole = json.loads(asked.whole.read_text()) if asked.whole else None
    rows = table(fidelity, tasks, cost, whole)
    made_of = [
        {name: one.get(name) for name in ("command", "commit", "hardware")}
        for one in (*fidelity, *tasks, cost, whole)
        if one
    ]
    write_result({"command": "python " + " ".join(sys.argv), "made_of": made_of, "rows": rows}, asked.out)
    if asked.markdown:
        print(markdown(rows, fidelity, tasks))
    if asked.plot:
        draw(rows, asked.plot)


if __name__ == "__main__":
    main()
