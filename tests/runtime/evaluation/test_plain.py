"""The plain model is transformers' own, however a text is cut, and reads only what it is told where it is told."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from gguf_cases import longrope
from gguf_models import random_model
from torch import Tensor

from stratakv.runtime.evaluation.plain import PlainModel
from stratakv.runtime.model.model import Model
from stratakv.runtime.model.model_files import ATTENTION, attention

TOKENS = np.random.default_rng(3).integers(4, 250, 60).astype(np.uint32)


def both(family: str, **settings: Any) -> tuple[PlainModel, Any]:
    """Ours and transformers' over the same weights."""
    from transformers.modeling_utils import AttentionInterface

    AttentionInterface.register(ATTENTION, attention)
    reference = random_model(family, num_hidden_layers=2, **settings)
    ours = copy.deepcopy(reference)
    ours.set_attn_implementation(ATTENTION)
    return PlainModel(Model(ours, None)), reference


def by_transformers(reference: Any, tokens: np.ndarray, seen: Tensor | None = None) -> Tensor:
    """`seen`: the keys that each row sees, bool `[rows, keys]`."""
    mask = None if seen is None else seen[None, None]
    with torch.inference_mode():
        logits: Tensor = reference(torch.from_numpy(tokens.astype(np.int64))[None], attention_mask=mask).logits[0]
    return logits


@pytest.mark.parametrize(
    ("family", "settings"),
    [("llama", {}), ("gemma3", {"sliding_window": 20, "layer_types": ["sliding_attention", "full_attention"]})],
    ids=["llama", "sliding"],
)
def test_logits_are_those_of_transformers_however_the_text_is_cut(family: str, settings: dict[str, Any]) -> None:
    plain, reference = both(family, **settings)
    expected = by_transformers(reference, TOKENS)
    torch.testing.assert_close(plain.read_all(TOKENS[:40]), expected[:40], rtol=1e-4, atol=1e-4)
    twin = plain.copy()
    plain.read(TOKENS[::-1][:9].copy())
    assert (plain.length, twin.length) == (49, 40), "a copy does not grow with what it was made of"
    for first, last in ((40, 41), (41, 58), (58, 60)):
        torch.testing.assert_close(twin.read(TOKENS[first:last]), expected[last - 1], rtol=1e-4, atol=1e-4)


def test_a_token_sees_the_chosen_ones() -> None:
    """As if the others were masked, in the layer that is named; another sees everything."""
    plain, reference = both("llama")
    plain.read(TOKENS[:-1])
    chosen = torch.tensor([[0, 1, 2, 17, 40, 59]] * 2)
    everything = by_transformers(reference, TOKENS)[-1]
    some = dict.fromkeys(range(2), chosen)
    found = plain.copy().read(TOKENS[-1:], some)
    seen = torch.ones(60, 60, dtype=torch.bool).tril()
    seen[-1] = torch.zeros(60, dtype=torch.bool).index_fill_(0, chosen[0], True)
    expected = by_transformers(reference, TOKENS, seen)[-1]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    of_one_layer = plain.copy().read(TOKENS[-1:], {1: chosen})
    assert (of_one_layer - expected).abs().max() > 1e-2
    assert (of_one_layer - everything).abs().max() > 1e-2


def test_each_head_has_its_own_choice() -> None:
    plain, _ = both("llama")
    plain.read(TOKENS[:-1])
    pair = torch.tensor([[3, 59], [50, 59]])
    found = [plain.copy().read(TOKENS[-1:], {0: each}) for each in (pair, pair[:1].expand(2, -1), pair.flip(0))]
    assert all((one - other).abs().max() > 1e-2 for one, other in zip(found, [*found[1:], found[0]], strict=True))


def test_a_text_that_would_be_turned_anew_is_refused() -> None:
    """Behind the window that a model was made for, all positions have other tables."""
    plain, _ = both("llama", **longrope(32))
    plain.read(TOKENS[:32])
    with pytest.raises(ValueError, match="32 tokens are turned as 0, 1 more need 33: read all at once"):
        plain.read(TOKENS[32:33])
