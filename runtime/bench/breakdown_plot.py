"""A result's breakdowns as one picture: a bar for each step, cut into its parts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..process.outputs import output
from ..process.pictures import figure_class

_COLOURS = {
    "q k v": "#1f5fb4", "output": "#4a86d0", "gate and up": "#7badea", "down": "#a9cbf3", "head": "#12356b",
    "highest logits": "#0a1d3b",
    "rotate and append": "#7b4fa3",
    "score tables": "#8a5200", "scores": "#e08e0b", "choice": "#f5c06b",
    "attention": "#2e8b57",
    "prepare": "#6a6a6a", "between": "#9a9a9a", "waits": "#d6439f", "other": "#c2c2c2", "unmarked": "#000000",
}  # fmt: skip
"""By part, in the order of a bar: products blue, what an index does orange, Python and PyTorch grey."""
_WHOLE, _WHOLE_COLOUR = "not told apart", "#e4e4e4"
_LEAST_SHARE = 0.06
"""Of the longest bar: parts that are shorter have no number."""


def draw_breakdown(result: dict[str, Any], path: Path) -> None:
    """Write a picture of the first turns' breakdowns in `result` to `path`; the suffix says which kind."""
    bars = [
        (_label(row, one), one["first_turn"]["breakdown"]) for row in result["rows"] for one in row["contestants"]
        if "breakdown" in one["first_turn"]
    ]  # fmt: skip
    memory = result["bandwidths"]["used"]["memory_bytes_per_s"]
    longest = max(found["total"]["took_ms"] for _, found in bars)
    figure = figure_class()(figsize=(11, 1.9 + 0.42 * len(bars)), layout="constrained")
    axes = figure.subplots()
    for place, (_, found) in enumerate(bars):
        left = 0.0
        for name, ms in _pieces(found):
            colour = _COLOURS.get(name, _WHOLE_COLOUR)
            axes.barh(place, ms, left=left, height=0.72, color=colour, edgecolor="white", linewidth=0.5)
            if ms >= _LEAST_SHARE * longest:
                style = {"color": _ink(colour), "fontsize": 8, "ha": "center", "va": "center"}
                axes.text(left + ms / 2, place, f"{ms:.1f}", **style)
            left += ms
        axes.text(left + 0.006 * longest, place, f"{left:.1f} ms", va="center", fontsize=9)
        if found["total"]["read_bytes"]:
            least = 1000 * found["total"]["read_bytes"] / memory
            axes.plot([least, least], [place - 0.46, place + 0.46], color="black", linewidth=1.6)
    axes.set_yticks(range(len(bars)), [label for label, _ in bars])
    axes.invert_yaxis()
    axes.set_xlim(0, 1.09 * longest)
    axes.set_xlabel(f"ms of a decode step; black line: its bytes at the memory's measured {memory / 1e9:.1f} GB/s")
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(axis="y", length=0)
    drawn = {name for _, found in bars for name, _ in _pieces(found)}
    for name in (*_COLOURS, _WHOLE):
        if name in drawn:
            axes.barh(0, 0, color=_COLOURS.get(name, _WHOLE_COLOUR), label=name)
    figure.legend(loc="outside lower center", ncols=7, fontsize=8, frameon=False)
    model, machine = result["model"], result["hardware"]
    title = f"{model['name']}, {model['dtype']}, on {machine['cpu']}, {machine['threads']} threads"
    figure.suptitle(title, x=0.01, ha="left", fontsize=10)
    with output(path) as file:
        figure.savefig(file, dpi=130, format=path.suffix[1:])


def _label(row: dict[str, Any], one: dict[str, Any]) -> str:
    name = one["name"].removeprefix("stratakv ")
    return f"{name}, {row['context']:,} tokens" + ("" if row["batch"] == 1 else f" x {row['batch']}")


def _pieces(found: dict[str, Any]) -> list[tuple[str, float]]:
    """(part, milliseconds) in the order of a bar."""
    took = {part["operation"]: part["took_ms"] for part in found["parts"]}
    if not took:
        return [(_WHOLE, found["total"]["took_ms"])]
    return [(name, took[name]) for name in _COLOURS if name in took]


def _ink(colour: str) -> str:
    """Black or white, whichever is read more easily on a colour."""
    red, green, blue = (int(colour[at : at + 2], 16) for at in (1, 3, 5))
    return "black" if 0.3 * red + 0.59 * green + 0.11 * blue > 130 else "white"
