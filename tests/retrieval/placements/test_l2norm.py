"""The shortest keys stay, but in the first layers."""

from __future__ import annotations

import pytest
import torch
from placed_text import placement, plain_text, seen


def test_the_shortest_keys_stay() -> None:
    one, text = placement("l2norm"), plain_text(40)
    kept = one.keep(seen(one, text), text, 12)
    norms = (text.keys * text.keys).sum(-1).sqrt()
    for group in range(2):
        middle = sorted(range(2, 36), key=lambda at: norms[group, at].item())[:6]
        assert kept[group].nonzero()[:, 0].tolist() == [0, 1, *sorted(middle), *range(36, 40)]


@pytest.mark.parametrize(
    ("tokens", "layers", "budget", "expected"),
    [
        (100, 10, 40, [100, 100, *[25] * 8]),
        (100, 10, 10, [25, 25, *[6] * 8]),  # no more than half of it all
        (100, 10, 100, [100] * 10),
        (100, 3, 100, [100] * 3),
        (100, 2, 30, [30, 30]),
    ],
)
def test_first_layers_keep_all_at_the_others_expense(
    tokens: int, layers: int, budget: int, expected: list[int]
) -> None:
    text = plain_text(tokens)
    each = [placement("l2norm", layer=layer) for layer in range(layers)]
    assert each[0].divide([one.wish({}, text) for one in each], budget) == expected


def test_without_first_layers_all_are_equal() -> None:
    text = plain_text(30)
    each = [placement("l2norm:skip=0", layer=layer) for layer in range(3)]
    assert each[0].divide([one.wish({}, text) for one in each], 10) == [10] * 3
    wide = placement("l2norm").divide([torch.tensor(0)] * 3, 10)
    assert wide == [10] * 3, "the first layers have another kind of attention"


def test_settings_have_ranges() -> None:
    with pytest.raises(ValueError, match="skip is 0 to 1024 layers, not -1"):
        placement("l2norm:skip=-1")
