"""Which layers read everything, which of them choose, and what the others have of an index: nothing."""

from __future__ import annotations

import pytest
import torch

from stratakv.retrieval import IndexedLayer, IndexParams, make_index
from stratakv.retrieval.index import Part
from stratakv.retrieval.indexes.choosing import ChoosingIndex, scaled

PARTS = {Part.ALONE: "a", Part.CHOOSES: "c", Part.FOLLOWS: "f"}


def parts(spec: str, count: int) -> str:
    made = [make_index(spec, IndexParams(), IndexedLayer(place=place, count=count)) for place in range(count)]
    assert all(isinstance(index, ChoosingIndex) for index in made)
    return "".join(PARTS[index.part] for index in made)


@pytest.mark.parametrize(
    ("spec", "count", "expected"),
    [
        ("tidal", 32, "aac" + 6 * "f" + "c" + 22 * "f"),  # as published
        ("tidal", 30, "aac" + 5 * "f" + "c" + 21 * "f"),
        ("tidal", 1, "c"),
        ("tidal", 4, "acff"),
        ("tidal:first=1:again=3", 6, "acfcff"),
        ("delta", 28, "aac" + 11 * "f" + "c" + 7 * "f" + "c" + 5 * "f"),  # as published
        ("delta", 30, "aac" + 12 * "f" + "c" + 8 * "f" + "c" + 5 * "f"),
        ("delta", 1, "c"),
        ("delta:first=2:middle=3:late=4", 6, "acfacf"),
        ("rounds", 6, "aaacff"),
        ("rounds", 1, "c"),
        ("rounds:watershed=1", 6, "acffff"),
    ],
)  # fmt: skip
def test_layers_are_where_they_are_published_or_as_deep(spec: str, count: int, expected: str) -> None:
    assert parts(spec, count) == expected


def test_a_published_place_is_scaled_by_depth() -> None:
    assert [scaled(9, 32, count) for count in (32, 64, 30, 3)] == [9, 18, 8, 1]


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ("tidal:again=6", "tidal chooses in layers 1 and 6, which must be in this order among the 6 layers"),
        ("tidal:first=4:again=2", "tidal chooses in layers 4 and 2"),
        ("delta:late=6", "delta reads everything in layer 6, and 6 layers have an index"),
        ("delta:first=7", "delta reads everything in layer 6"),
        ("rounds:watershed=6", "rounds chooses in layer 6, and 6 layers have an index"),
        ("rounds:share=1.5", "watershed is at least 0 and share above 0 to 1, not 0 and 1.5"),
        ("tidal:most=2", "first and again are at least 0 and most 0 or 1, not 0, 0 and 2"),
        ("delta:recent=-1", "first, middle, late and recent are at least 0, not 0, 0, 0 and -1"),
    ],
)
def test_layers_that_are_not_there_are_refused(spec: str, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        make_index(spec, IndexParams(), IndexedLayer(place=0, count=6))


def test_a_layer_alone_reads_everything() -> None:
    index = make_index("tidal", IndexParams(page_size=4, sink=0, local=0), IndexedLayer(place=0, count=32))
    assert index.select(None, torch.zeros(2, 3, 8), 24, 8).ids.tolist() == [[0, 1, 2, 3, 4, 5]] * 2
