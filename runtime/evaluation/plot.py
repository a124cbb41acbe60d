"""A result as one picture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .variants import CEILING, DENSE, FLOOR

_COLOURS = {DENSE: "#222222", FLOOR: "#b0b0b0", CEILING: "#2a7f3f"}
_SUFFIXES = (".png", ".svg", ".pdf")
_OTHERS = ["#1f5fb4", "#d1495b", "#e08e0b", "#7b4fa3", "#1b9e9e", "#8c5a2b"]


def check(path: Path) -> None:
    """Raises ValueError, before any work, if no picture can be drawn there."""
    if path.suffix not in _SUFFIXES:
        raise ValueError(f"a picture's name ends in {', '.join(_SUFFIXES)}; not {path.name!r}")
    _figure_class()


def draw(result: dict[str, Any], path: Path) -> None:
    """Write a picture of `result` to `path`; the suffix says which kind."""
    figure_class = _figure_class()
    size = {"exact": (9, 0.5 + 0.24 * len(result.get("checks", []))), "tasks": (13, 5)}.get(result["suite"], (11, 4.5))
    figure = figure_class(figsize=size, layout="constrained")
    _DRAWINGS[result["suite"]](result, figure)
    figure.savefig(path, dpi=130)


def _figure_class() -> Any:
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise ValueError("--plot needs matplotlib: pip install 'stratakv[eval]'") from None
    return Figure


def _exact(result: dict[str, Any], figure: Any) -> None:
    """Errors against their bounds. A check that counts has bound 0 and shows no bar unless it failed."""
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
    left, right = figure.subplots(1, 2)
    for name, rows in _by_index(result).items():
        if name == DENSE:
            continue
        read = [row["tokens_read"] for row in rows]
        style = {"color": _colour(result, name), "marker": "o", "label": name}
        left.plot(read, [row["kl"] for row in rows], **style)
        left.fill_between(
            read, *zip(*(row["kl_interval"] for row in rows), strict=True), color=style["color"], alpha=0.15
        )
        right.plot(read, [100 * row["mass"] for row in rows], **style)
    read_at = sorted({row["tokens_read"] for row in result["variants"] if row["index"] == FLOOR})
    for axes, label in ((left, "mean KL from dense (nats)"), (right, "attention mass on what was read, %")):
        axes.set_xscale("log")
        axes.set_xticks(read_at, [f"{tokens:.0f}" for tokens in read_at], minor=False)
        axes.tick_params(axis="x", which="minor", labelbottom=False)
        axes.set_xlabel("tokens read per KV head and step")
        axes.set_ylabel(label)
        axes.grid(alpha=0.3, which="both")
        axes.legend(fontsize=8)
    left.set_yscale("log")
    figure.suptitle(_title(result), x=0.01, ha="left", fontsize=10)


def _needles(result: dict[str, Any], figure: Any) -> None:
    modes, turns = figure.subplots(1, 2, width_ratios=(3, 1))
    rows = result["variants"]
    names = list(rows[0]["modes"])
    width = 0.8 / len(rows)
    for place, row in enumerate(rows):
        at = [i + (place - (len(rows) - 1) / 2) * width for i in range(len(names))]
        shares = [100 * row["modes"][name]["digits"]["other"] for name in names]
        style = {"color": _colour(result, row["index"]), "alpha": _alpha(result, row), "label": row["label"]}
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
        style = {"color": _colour(result, row["index"]), "alpha": _alpha(result, row)}
        axes.bar(
            at, [100 * row["by_task"][n]["forced"]["other"] for n in names], width * 0.92, label=row["label"], **style
        )
        found = [100 * row["by_task"][n]["found"]["other"] for n in names]
        axes.plot(at, found, linestyle="none", marker="_", color="#d1495b", markersize=6)
    labels = [f"{n} *" if rows[0]["by_task"][n]["intensive"] else n for n in names]
    axes.set_xticks(range(len(names)), labels, rotation=40, ha="right", fontsize=8)
    axes.set_ylabel("bars: right tokens, teacher-forced, %\nred: references found in the reply, %", fontsize=8)
    axes.legend(fontsize=8, ncols=len(rows), loc="upper center", bbox_to_anchor=(0.5, 1.1))
    figure.suptitle(_title(result) + "  (* needs much of the context)", x=0.01, ha="left", fontsize=10)


_DRAWINGS = {"exact": _exact, "fidelity": _fidelity, "needles": _needles, "tasks": _tasks}


def _by_index(result: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    found: dict[str, list[dict[str, Any]]] = {}
    for row in sorted(result["variants"], key=lambda row: row["tokens_read"]):
        found.setdefault(row["index"], []).append(row)
    return found


def _colour(result: dict[str, Any], index: str) -> str:
    others = [name for name in dict.fromkeys(row["index"] for row in result["variants"]) if name not in _COLOURS]
    return _COLOURS[index] if index in _COLOURS else _OTHERS[others.index(index) % len(_OTHERS)]


def _alpha(result: dict[str, Any], row: dict[str, Any]) -> float:
    """Smaller budgets of the same index are paler."""
    budgets = sorted({other["budget"] for other in result["variants"] if other["index"] == row["index"]})
    return 0.4 + 0.6 * (budgets.index(row["budget"]) + 1) / len(budgets)


def _title(result: dict[str, Any]) -> str:
    return f"{result['suite']}: {result['model']}, {result['samples']} x {result['ctx']} tokens"
