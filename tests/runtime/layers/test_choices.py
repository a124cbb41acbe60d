"""What a layer chose is there for the layers after it, token by token, and for nothing else."""

from __future__ import annotations

import pytest
import torch

from stratakv.retrieval.index import Selection
from stratakv.runtime.layers.choices import Choices


def choice(page: int) -> Selection:
    return Selection(torch.tensor([[page]]), 4)


def test_choices_are_the_tokens_own_until_another_layer_chooses() -> None:
    choices = Choices()
    assert choices.newest is None
    one, two, other = choice(1), choice(2), choice(3)
    choices.put(0, 9, one)
    choices.put(0, 10, two)
    assert (choices.of(9), choices.of(10), choices.newest) == (one, two, two)
    choices.put(3, 10, other)
    assert (choices.of(10), choices.newest) == (other, other)
    with pytest.raises(AssertionError, match="none before it has chosen for this token"):
        choices.of(9)
    choices.clear()
    assert choices.newest is None
    with pytest.raises(AssertionError, match="none before it"):
        choices.of(10)
