"""Names of indexes with their settings."""

from __future__ import annotations

import pytest

from stratakv.retrieval.params import IndexParams
from stratakv.retrieval.registry import AUTO, INDEXES, index_class, index_names, make_index, split_spec


def test_a_spec_is_a_name_and_settings() -> None:
    assert split_spec("bounds") == ("bounds", {})
    assert split_spec("magicpig:bits=8: tables = 75") == ("magicpig", {"bits": "8", "tables": "75"})
    assert split_spec("auto:rank=8") == (AUTO, {"rank": "8"})


def test_each_name_has_a_class_of_that_name() -> None:
    assert index_names() == ["auto", *sorted(INDEXES)]
    for name in INDEXES:
        assert index_class(name)[0].name == name


def test_settings_are_read_as_their_defaults_are() -> None:
    _, options = index_class("magicpig:bits=8:tables=75")
    assert (options.bits, options.tables) == (8, 75)


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ("nearest", "index is one of auto, a2ats, .*; not 'nearest'"),
        ("", "index is one of"),
        ("magicpig:bit=8", "index 'magicpig' has no setting 'bit'; its settings: .*bits"),
        ("magicpig:bits=many", "bits is a whole number, not 'many'"),
        ("magicpig:bits", "bits is a whole number, not ''"),
        ("magicpig:bits=0", "index 'magicpig:bits=0': "),
        ("dense:rank=1", "index 'dense' has no setting 'rank'; its settings: none"),
    ],
)
def test_what_is_unknown_or_out_of_range_is_refused(spec: str, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        make_index(spec, IndexParams())
