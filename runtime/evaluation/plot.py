"""A result as one picture."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Any

from ..process.outputs import output
from ..process.pictures import figure_class
from .variants import CEILING, DENSE, FLOOR

_COLOURS = {DENSE: "#222222", FLOOR: "#8a8a8a", CEILING: "#2a7f3f"}
_OTHERS = ["#1f5fb4", "#d6439f", "#e08e0b", "#7b4fa3", "#1b9e9e", "#8c5a2b", "#7a8b00", "#6fa8dc"]
_MARKERS = "osD^vPX*"


def draw(result: dict[str, Any], path: Path) -> None:
    """Write a picture of `result` to `path`; the suffix says which kind."""
    sizes = {
        "exact": (9, 0.5 + 0.24 * len(result.get("checks", []))),
        "fidelity": (9, 5.5),
        "tasks": (16 if len(result.get("variants", [])) > 5 else 13, 5.5),
    }
    figure = figure_class()(figsize=sizes.get(result["suite"], (11, 4.5)), layout="constrained")
    _DRAWINGS[result["suite"]](result, figure)
    with output(path) as file:
        figure.savefig(file, dpi=130, format=path.suffix[1:])


def _exact(result: dict[str, Any], figure: Any) -> None:
    """Draw errors against their bounds. A check that counts has bound 0 and shows no bar unless it failed."""
    axes = figure.subplots()
    checks = result["checks"][::-1]
    smallest = 1e-9
    errors = [1.0 if check["error"] is None else check["error"] for check in checks]
    colours = ["#2a7f3f" if check["passed"] else "#d1495b" for check in checks]
    axes.barh(range(len(checks)), errors, left=smallest, color=colours, height=0.6)
    for place, check in enumerate(checks):
        if check["bound"]:
            axes.plot([check["bound"]] * 2, [place - 0.4, place + 0.4], color="#222222")
    axes.set_xscale("log")
    axes.set_xlim(smallest, 1)
    axes.set_ylim(-1, len(checks))
    axes.set_yticks(range(len(checks)), [check["name"] for check in checks], fontsize=7)
    axes.set_xlabel("error (black: its bound; no bar: exactly none)")
    axes.set_title(f"exactness, {result['model']}", loc="left", fontsize=10)


def _fidelity(result: dict[str, Any], figure: Any) -> None:
    """Draw one line per index. The legend stands beside it, in the order of the lines' right ends."""
    axes = figure.subplots()
    lines = {name: rows for name, rows in _by_index(result).items() if name != DENSE}
    for name in sorted(lines, key=lambda name: -lines[name][-1]["kl"]):
        rows = lines[name]
        read, kl = [row["tokens_read"] for row in rows], [row["kl"] for row in rows]
        bars = [(row["tokens_read"], *row["kl_interval"]) for row in rows if row["kl_interval"] is not None]
        axes.plot(
            read, kl, color=colour(result, name), marker=marker(result, name), markersize=6, zorder=3,
            linestyle="--" if name in _COLOURS else "-", linewidth=1.8, label=name,
        )  # fmt: skip
        axes.vlines(
            *(zip(*bars, strict=True) if bars else ([], [], [])), color=colour(result, name), alpha=0.35, linewidth=1.2
        )
    read_at = _apart(sorted({row["tokens_read"] for row in lines[FLOOR]}))
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xticks(read_at, [f"{tokens:.0f}\n{tokens / result['ctx']:.1%}" for tokens in read_at], minor=False)
    axes.tick_params(axis="x", which="minor", labelbottom=False)
    axes.set_xlabel("tokens read per KV head and step, and their share of the context")
    has_bars = any(row["kl_interval"] is not None for row in result["variants"])
    axes.set_ylabel(f"mean KL from dense (nats; {'bars: 95 %' if has_bars else 'one context: no interval'})")
    axes.grid(alpha=0.3, which="both")
    axes.legend(fontsize=9, loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False)
    figure.suptitle(_title(result), x=0.01, ha="left", fontsize=10)


def _needles(result: dict[str, Any], figure: Any) -> None:
    modes, turns = figure.subplots(1, 2, width_ratios=(3, 1))
    rows = result["variants"]
    names = list(rows[0]["modes"])
    width = 0.8 / len(rows)
    for place, row in enumerate(rows):
        at = [i + (place - (len(rows) - 1) / 2) * width for i in range(len(names))]
        shares = [100 * row["modes"][name]["digits"]["other"] for name in names]
        style = {"color": colour(result, row["index"]), "alpha": _alpha(result, row), "label": row["label"]}
        modes.bar(at, shares, width * 0.92, **style)
        shares = [100 * of["other"] for of in row["turns"].values()]
        turns.plot([int(turn) + 1 for turn in row["turns"]], shares, marker="o", **style)
    modes.set_xticks(range(len(names)), [name.replace("_", " ") for name in names])
    modes.set_ylabel("digits right, %")
    modes.legend(fontsize=8, ncols=len(rows), loc="upper center", bbox_to_anchor=(0.5, 1.1))
    turns.set_xlabel("turn")
    turns.set_xticks(range(1, 1 + result["needles"]))
    for axes in (modes, turns):
        axes.set_ylim(0, 100)
    turns.grid(alpha=0.3)
    figure.suptitle(_title(result), x=0.01, ha="left", fontsize=10)


def _tasks(result: dict[str, Any], figure: Any) -> None:
    axes = figure.subplots()
    rows, names = result["variants"], result["tasks"]
    width = 0.8 / len(rows)
    for place, row in enumerate(rows):
        at = [i + (place - (len(rows) - 1) / 2) * width for i in range(len(names))]
        style = {"color": colour(result, row["index"]), "alpha": _alpha(result, row)}
        axes.bar(
            at, [100 * row["by_task"][n]["forced"]["other"] for n in names], width * 0.92, label=row["label"], **style
        )
        found = [100 * row["by_task"][n]["found"]["other"] for n in names]
        axes.plot(at, found, linestyle="none", marker="_", color="#d1495b", markersize=6)
    labels = [f"{n} *" if rows[0]["by_task"][n]["intensive"] else n for n in names]
    axes.margins(x=0.01)
    axes.set_xticks(range(len(names)), labels, rotation=40, ha="right", fontsize=8)
    axes.set_ylabel("bars: right tokens, teacher-forced, %\nred: references found in the reply, %", fontsize=8)
    axes.legend(fontsize=8, ncols=len(rows), loc="upper center", bbox_to_anchor=(0.5, 1.1))
    figure.suptitle(_title(result, "  (* needs much of the context)"), x=0.01, ha="left", fontsize=10)


_DRAWINGS = {"exact": _exact, "fidelity": _fidelity, "needles": _needles, "tasks": _tasks}


def _by_index(result: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    found: dict[str, list[dict[str, Any]]] = {}
    for row in sorted(result["variants"], key=lambda row: row["tokens_read"]):
        found.setdefault(row["index"], []).append(row)
    return found


def _apart(ticks: list[float]) -> list[float]:
    """Choose ticks whose labels do not touch on a logarithmic axis."""
    found: list[float] = []
    for tick in ticks:
        if not found or tick > 1.15 * found[-1]:
            found.append(tick)
    return found


def _place(result: dict[str, Any], index: str) -> int:
    """The place of an index that is no yardstick, among its kind."""
    others = [name for name in dict.fromkeys(row["index"] for row in result["variants"]) if name not in _COLOURS]
    return others.index(index)


def colour(result: dict[str, Any], index: str) -> str:
    """The colour of an index's line or bars."""
    return _COLOURS[index] if index in _COLOURS else _OTHERS[_place(result, index) % len(_OTHERS)]


def marker(result: dict[str, Any], index: str) -> str:
    """The marker of an index's line."""
    return "." if index in _COLOURS else _MARKERS[_place(result, index) % len(_MARKERS)]


def _alpha(result: dict[str, Any], row: dict[str, Any]) -> float:
    """The opacity of a row: smaller budgets of the same index are paler."""
    budgets = sorted({other["budget"] for other in result["variants"] if other["index"] == row["index"]})
    return 0.4 + 0.6 * (budgets.index(row["budget"]) + 1) / len(budgets)


def _title(result: dict[str, Any], note: str = "") -> str:
    undecided = [row["label"] for row in result["variants"] if row.get("undecided")]
    said = f"marks undecided, the samples are too few: {', '.join(undecided)}" if undecided else ""
    what = f"{result['suite']}: {result['model']}, {result['samples']} x {result['ctx']} tokens{note}"
    return "\n".join([what, *textwrap.wrap(said, 110)])
