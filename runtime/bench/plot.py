"""A result as one picture: time per step over context, and the bytes that a step of ours moves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..process.outputs import output
from ..process.pictures import figure_class

_COLOURS = ["#1f5fb4", "#d6439f", "#e08e0b", "#7b4fa3", "#1b9e9e", "#8c5a2b", "#7a8b00", "#6fa8dc"]
_GREYS = ["#222222", "#6a6a6a", "#9a9a9a", "#c2c2c2"]
_MARKERS = "osD^vPX*"


def draw(result: dict[str, Any], path: Path) -> None:
    """Write a picture of `result` to `path`; the suffix says which kind."""
    figure = figure_class()(figsize=(12, 4.8), layout="constrained")
    times, moved = figure.subplots(1, 2, width_ratios=(3, 2))
    rows = result["rows"]
    lines = list(dict.fromkeys((one["name"], row["batch"]) for row in rows for one in row["contestants"]))
    for place, (name, batch) in enumerate(lines):
        here = [(row["context"], one["first_turn"]) for row, one in _of(rows, name, batch)]
        style = {"label": f"{name}, batch {batch}", "marker": _MARKERS[place % len(_MARKERS)], **_style(lines, place)}
        times.plot([c for c, _ in here], [turn["tpot_ms_p50"] for _, turn in here], **style)
        spread = [(c, turn["tpot_ms_p50"], turn["tpot_ms_p90"]) for c, turn in here if turn["tpot_ms_p90"] is not None]
        times.vlines(*(zip(*spread, strict=True) if spread else ([], [], [])), color=style["color"], alpha=0.4)
        if "bytes_per_step" in here[0][1]:
            moved.plot([c for c, _ in here], [_crossing(turn) for _, turn in here], **style)
    contexts = sorted({row["context"] for row in rows})
    for axes, what in ((times, "ms per step (p50; bars up to p90)"), (moved, "MB crossing tier edges per step")):
        axes.set_xscale("log", base=2)
        axes.set_xticks(contexts, [f"{c:,}" for c in contexts], rotation=30)
        axes.set_xlabel("context, tokens")
        axes.set_ylabel(what)
        axes.grid(alpha=0.3)
    times.set_yscale("log")
    moved.set_ylim(bottom=0)
    times.legend(fontsize=8)
    figure.suptitle(_title(result), x=0.01, ha="left", fontsize=10)
    with output(path) as file:
        figure.savefig(file, dpi=130, format=path.suffix[1:])


def _of(rows: list[dict[str, Any]], name: str, batch: int) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    found = [(row, one) for row in rows for one in row["contestants"] if (one["name"], row["batch"]) == (name, batch)]
    return sorted(found, key=lambda pair: int(pair[0]["context"]))


def _style(lines: list[tuple[str, int]], place: int) -> dict[str, str]:
    """Colours for ours; grey and dashed lines for the others."""
    is_ours = lines[place][0].startswith("stratakv")
    rank = sum(name.startswith("stratakv") == is_ours for name, _ in lines[:place])
    colours = _COLOURS if is_ours else _GREYS
    return {"color": colours[rank % len(colours)], "linestyle": "-" if is_ours else "--"}


def _crossing(turn: dict[str, Any]) -> float:
    return float(sum(n for name, n in turn["bytes_per_step"].items() if "_to_" in name)) / 1e6


def _title(result: dict[str, Any]) -> str:
    model, machine = result["model"], result["hardware"]
    weights = ", random weights" if model["random_weights"] else ""
    return f"{model['name']}{weights}, {model['dtype']}, on {machine.get('gpu') or machine['cpu']}"
