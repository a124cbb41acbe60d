"""Names of placements with their settings."""

from __future__ import annotations

import pytest

from stratakv.retrieval.params import IndexParams
from stratakv.retrieval.placement_registry import PLACEMENTS, placement_spec


def test_each_name_has_a_class_of_that_name() -> None:
    for name in PLACEMENTS:
        assert placement_spec(name).load()[0].name == name
        assert placement_spec(name).make(IndexParams(), 3).layer == 3


def test_settings_are_set_apart_by_colons_or_commas() -> None:
    one, other = (
        placement_spec("snapkv:window=16,keep=0.2,mode=hot"),
        placement_spec("snapkv:keep=0.2:mode=hot:window=16"),
    )
    assert one.identity == other.identity == "snapkv:window=16:keep=0.2:mode=hot"
    assert (one.is_visible, one.load()[1].window) == (False, 16)


def test_what_is_kept_is_a_share_or_a_number() -> None:
    assert placement_spec("h2o").tokens(1001) == 101
    assert placement_spec("h2o:keep=1").tokens(1001) == 1001
    assert placement_spec("h2o:keep=300").tokens(1001) == 300


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ("nearest", "placement is one of cake, .*; not 'nearest'"),
        ("h2o:keep=0", "keep is a share from 0 to 1 or a whole number of tokens, not 0"),
        ("h2o:keep=1.5", "keep is a share"),
        ("h2o:keep=inf", "keep is a share"),
        ("h2o:keep=much", "keep is a number, not 'much'"),
        ("h2o:mode=cold", "mode is visible or hot, not 'cold'"),
        ("h2o:window=3", "placement 'h2o' has no setting 'window'; its settings: recent"),
        ("snapkv:pool=4", "placement 'snapkv:pool=4': pool is an odd number"),
        ("cake:window=200", "window is 1 to 128 tokens, not 200"),
        ("cake:gamma=-1", "gamma is 0 to 1e6, not -1"),
        ("cake:tau2=0", "tau2 is 0.01 to 100, not 0"),
        ("dynamickv:most=0.5", "most is 1 to 1000, not 0.5"),
        ("keyformer:tau=0", "tau is 0.01 to 100, not 0"),
        ("keyformer:growth=2", "growth is 0 to 1, not 2"),
        ("keyformer:noise=-1", "noise is 0 to 10, not -1"),
        ("pyramidkv:beta=0", "beta is 1 to 1000, not 0"),
        ("pyramidkv:pool=2", "pool is an odd number"),
        ("scissorhands:window=0", "window is 1 to 4096 queries, not 0"),
        ("scope:reply=100", "recent is 0 to 100 tokens, as reply is, not 256"),
        ("scope:delta=-1", "delta is 0 to 1024 tokens, not -1"),
        ("treekv:block=0", "block is 1 to 1024 tokens, not 0"),
        ("vatp:first=-1", "first is 0 to 1024 tokens, not -1"),
        ("vatp:recent=2", "recent is a share from 0 to 1, not 2"),
    ],
)
def test_what_is_unknown_or_out_of_range_is_refused(spec: str, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        placement_spec(spec).load()
