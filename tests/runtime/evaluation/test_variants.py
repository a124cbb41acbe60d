"""What is compared: dense once, and at each budget the indexes between a floor and a ceiling."""

from __future__ import annotations

import pytest

from stratakv.retrieval.registry import AUTO
from stratakv.runtime.api.config import KVConfig
from stratakv.runtime.evaluation.variants import Variant, variants


def test_an_index_with_settings_is_one_of_its_own() -> None:
    compared = variants(["bounds", "bounds:bits=3", "bounds", "window:a=1", "oracle", "auto:b=2"], [0.1, 0.05])
    indexes = ["window", "bounds", "bounds:bits=3", "auto:b=2", "oracle"]
    assert [variant.index for variant in compared] == ["dense", *indexes, *indexes]
    assert [variant.label for variant in compared[:4]] == ["dense", "window@0.05", "bounds@0.05", "bounds:bits=3@0.05"]
    assert [variant.index for variant in compared if variant.is_yardstick] == ["dense", *["window", "oracle"] * 2]
    assert Variant("oracle:a=1", 0.1).is_yardstick


def test_the_least_that_is_always_read_is_a_floor_of_its_own() -> None:
    labels = [variant.label for variant in variants(["bounds"], [336, 176, 336], least=112)]
    assert labels == ["dense", "window@112", "window@176", "bounds@176", "oracle@176", "window@336", "bounds@336",
                      "oracle@336"]  # fmt: skip


def test_a_placement_is_read_alone_or_beside_the_default_index() -> None:
    visible, hot = (Variant(name, 0.1) for name in ("snapkv:window=8", "snapkv:mode=hot"))
    assert [one.label for one in (visible, hot)] == ["snapkv:window=8@0.1", "snapkv:mode=hot@0.1"]
    assert [one.reads_what_is_kept for one in (visible, hot, Variant("bounds", 0.1))] == [True, False, False]
    assert not visible.is_yardstick
    assert visible.config(KVConfig()).placement == "snapkv:window=8:keep=0.1"
    assert visible.config(KVConfig()).index == "dense"
    assert (hot.config(KVConfig()).index, hot.config(KVConfig()).budget) == (AUTO, 0.1)
    with pytest.raises(ValueError, match=r"snapkv.* has no setting 'bits'"):
        Variant("snapkv:bits=8", 0.1).config(KVConfig())


def test_a_way_of_reading_changes_nothing_else() -> None:
    base = KVConfig(index="dense", budget=4096, sink=8, codec="raw")
    read = Variant("bounds", 176).config(base)
    assert (read.index, read.budget, read.sink, read.codec) == ("bounds", 176, 8, "raw")
    with pytest.raises(ValueError, match="budget is at least"):
        Variant("bounds", 16).config(base)
