"""A picture of a bench has a line for each contestant and batch, and ours can be told from the others."""

from __future__ import annotations

from typing import Any

import pytest
from drawings import hex_colour, kept

from stratakv.runtime.bench import plot


def contestant(name: str, ms: float, p90: float | None = None, moved: float | None = None) -> dict[str, Any]:
    turn: dict[str, Any] = {"tpot_ms_p50": ms, "tpot_ms_p90": p90}
    if moved is not None:
        turn["bytes_per_step"] = {"host_to_gpu_bytes": moved, "disk_to_host_bytes": moved, "read_bytes": 1e9}
    return {"name": name, "first_turn": turn}


def result(gpu: str | None = None) -> dict[str, Any]:
    """The longer context comes first, and one baseline took part in the shorter one only."""
    rows = [
        {"context": 4096, "batch": 1, "contestants": [contestant("stratakv bounds", 3, 4, 2e6)]},
        {"context": 1024, "batch": 1, "contestants": [
            contestant("stratakv bounds", 2, None, 1e6), contestant("stratakv spectral", 1, 5, 0),
            contestant("dense", 9),
        ]},
        {"context": 1024, "batch": 2, "contestants": [contestant("stratakv bounds", 6, 7, 1e6)]},
    ]  # fmt: skip
    machine = {"cpu": "a processor", **({} if gpu is None else {"gpu": gpu})}
    return {"rows": rows, "hardware": machine, "model": {"name": "m", "random_weights": True, "dtype": "float32"}}


@pytest.fixture(scope="module")
def figures(tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    """On a processor, and on a card."""
    path = tmp_path_factory.mktemp("plot") / "found.pdf"
    with pytest.MonkeyPatch.context() as patch:
        drawn = kept(plot, patch)
        for gpu in (None, "a card"):
            plot.draw(result(gpu), path)
    return drawn


def test_lines_go_from_context_to_context(figures: list[Any]) -> None:
    times, moved = figures[0].axes
    lines = {line.get_label(): (list(line.get_xdata()), list(line.get_ydata())) for line in times.lines}
    assert lines == {
        "stratakv bounds, batch 1": ([1024, 4096], [2, 3]), "stratakv spectral, batch 1": ([1024], [1]),
        "dense, batch 1": ([1024], [9]), "stratakv bounds, batch 2": ([1024], [6]),
    }  # fmt: skip
    crossing = {line.get_label(): list(line.get_ydata()) for line in moved.lines}
    assert crossing == {
        "stratakv bounds, batch 1": [2, 4], "stratakv spectral, batch 1": [0], "stratakv bounds, batch 2": [2],
    }  # fmt: skip
    assert [label.get_text() for label in times.get_xticklabels()] == ["1,024", "4,096"]


def test_a_spread_is_drawn_where_there_is_one(figures: list[Any]) -> None:
    spreads = [[segment.tolist() for segment in one.get_segments()] for one in figures[0].axes[0].collections]
    assert spreads == [[[[4096, 3], [4096, 4]]], [[[1024, 1], [1024, 5]]], [], [[[1024, 6], [1024, 7]]]]


def test_ours_are_coloured_and_the_others_grey_and_dashed(figures: list[Any]) -> None:
    drawn = {line.get_label(): line for line in figures[0].axes[0].lines}
    assert {name for name, line in drawn.items() if line.get_linestyle() == "--"} == {"dense, batch 1"}
    colours = {name: hex_colour(line) for name, line in drawn.items()}
    assert len({*colours.values()}) == len({line.get_marker() for line in drawn.values()}) == 4
    assert {name for name, colour in colours.items() if colour[1:3] == colour[3:5] == colour[5:]} == {"dense, batch 1"}


def test_a_title_says_on_what(figures: list[Any]) -> None:
    assert [figure.get_suptitle() for figure in figures] == [
        "m, random weights, float32, on a processor", "m, random weights, float32, on a card",
    ]  # fmt: skip
