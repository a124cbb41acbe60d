"""A picture of a breakdown has a bar for each step, whose pieces add up to it."""

from __future__ import annotations

from typing import Any

import pytest
from drawings import hex_colour, kept

from stratakv.runtime.bench import breakdown_plot


def breakdown(read_bytes: float | None, **parts: float) -> dict[str, Any]:
    listed = [{"operation": name.replace("_", " "), "took_ms": ms} for name, ms in parts.items()]
    return {"parts": listed, "total": {"took_ms": sum(parts.values()) or 5.0, "read_bytes": read_bytes}}


@pytest.fixture(scope="module")
def axes(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Of a step whose parts are told apart, one whose are not, and a contestant without a breakdown."""
    steps = [breakdown(6e6, other=1.0, attention=8.0, q_k_v=0.4, head=0.6), breakdown(None)]
    contestants = [
        {"name": f"stratakv {name}", "first_turn": {"breakdown": of}}
        for name, of in zip(("bounds", "spectral"), steps, strict=True)
    ]
    rows = [
        {"context": 7500, "batch": 1, "contestants": [contestants[0], {"name": "dense", "first_turn": {}}]},
        {"context": 512, "batch": 2, "contestants": [contestants[1]]},
    ]
    result = {
        "rows": rows, "bandwidths": {"used": {"memory_bytes_per_s": 2e9}},
        "model": {"name": "m", "dtype": "bfloat16"}, "hardware": {"cpu": "a processor", "threads": 4},
    }  # fmt: skip
    path = tmp_path_factory.mktemp("plot") / "steps.png"
    with pytest.MonkeyPatch.context() as patch:
        figures = kept(breakdown_plot, patch)
        breakdown_plot.draw_breakdown(result, path)
    return figures[0].axes[0]


def test_pieces_of_a_bar_stand_side_by_side_in_one_order(axes: Any) -> None:
    bars = [(round(bar.get_y() + 0.36), bar.get_x(), bar.get_width()) for bar in axes.patches if bar.get_width()]
    first, second = [bar[1:] for bar in bars if bar[0] == 0], [bar[1:] for bar in bars if bar[0] == 1]
    assert first == [(0, 0.4), (0.4, 0.6), (1.0, 8.0), (9.0, 1.0)]
    assert second == [(0, 5.0)], "not told apart"
    assert [label.get_text() for label in axes.get_yticklabels()] == [
        "bounds, 7,500 tokens",
        "spectral, 512 tokens x 2",
    ]


def test_a_piece_has_its_number_where_there_is_room(axes: Any) -> None:
    """6 % of the longest bar; whole bars have theirs behind them."""
    assert [text.get_text() for text in axes.texts] == ["0.6", "8.0", "1.0", "10.0 ms", "5.0", "5.0 ms"]


def test_a_line_stands_where_memory_alone_would_be_done(axes: Any) -> None:
    (line,) = axes.lines
    assert list(line.get_xdata()) == [3, 3]
    assert [round(end, 2) for end in line.get_ydata()] == [-0.46, 0.46]
    assert "measured 2.0 GB/s" in axes.get_xlabel()


def test_what_is_drawn_is_in_the_legend_under_its_colour(axes: Any) -> None:
    handles, labels = axes.get_legend_handles_labels()
    assert labels == ["q k v", "head", "attention", "other", "not told apart"]
    drawn = [hex_colour(bar) for bar in axes.patches if bar.get_width()]
    assert [hex_colour(handle[0]) for handle in handles] == drawn
    assert len(set(drawn)) == 5


def test_a_title_says_on_what(axes: Any) -> None:
    assert axes.get_figure().get_suptitle() == "m, bfloat16, on a processor, 4 threads"
