"""What a session has of a placement comes back as it was, or is seen to be something else."""

from __future__ import annotations

import pytest
import torch
from layer_kv import KV, REPEATS
from placed_text import placement
from torch import Tensor

from stratakv.retrieval.stored import Geometry
from stratakv.runtime.layers.kept import Kept, check_kept, exported, kept_of

TOKENS, PAGE = 70, 4
OF = Geometry(KV[0, :, :0], 0, REPEATS)
H2O = placement("h2o")
NOTHING = Kept(torch.empty(2, 0, dtype=torch.int64), {"mass": torch.empty(2, 0)}, True, 0, None, 0, 0, None, ())
POSITIONS = torch.tensor([[0, 1, 30, 68, 69], [-1, 0, 1, 68, 69]])
KEPT = Kept(POSITIONS, {"mass": torch.rand(2, 5)}, False, TOKENS, 24, 0, 60, None, ())
BEHIND = KEPT._replace(end=68, positions=POSITIONS[:, :3], state={"mass": torch.rand(2, 3)})
EVERY = torch.arange(TOKENS).expand(2, -1)
WHOLE = KEPT._replace(positions=EVERY, state={"mass": torch.rand(2, TOKENS)}, is_whole=True)
OF_ONE_HEAD = WHOLE._replace(positions=EVERY.where(torch.tensor([[0], [9]]) <= EVERY, -1), is_whole=False)
STEPS = (torch.rand(2, REPEATS, 1, 8), torch.rand(2, REPEATS, 1, 8))


def check(tensors: dict[str, Tensor]) -> None:
    check_kept(tensors, TOKENS, NOTHING, H2O, OF, PAGE)


@pytest.mark.parametrize(
    "kept", [KEPT, BEHIND._replace(steps=STEPS), KEPT._replace(budget=None, length=50), WHOLE, OF_ONE_HEAD]
)
def test_what_is_kept_comes_back(kept: Kept) -> None:
    tensors = exported(kept)
    check(tensors)
    found = kept_of(tensors)
    assert (found.end, found.budget, found.length, found.prompt) == (kept.end, kept.budget, kept.length, kept.prompt)
    assert torch.equal(found.positions, kept.positions)
    assert found.is_whole == kept.is_whole
    assert torch.equal(found.state["mass"], kept.state["mass"])
    assert all(map(torch.equal, found.steps, kept.steps))
    assert len(found.steps) == len(kept.steps)


@pytest.mark.parametrize(
    ("name", "wrong", "says"),
    [
        ("at", torch.tensor([60, 24, 0, 0]), "where this text ends"),
        ("at", torch.tensor([TOKENS, 24, 0]), "where this text ends"),
        ("at", torch.tensor([TOKENS, -5, 0, 0]), "a budget of this text"),
        ("at", torch.tensor([TOKENS, 24, 0, 71]), "a budget of this text"),
        ("positions", torch.zeros(2, 5, dtype=torch.int64), "ascending"),
        ("positions", POSITIONS.flip(1), "ascending"),
        ("positions", torch.tensor([[0, 1, 30, 31, 69]] * 2), "tokens that no page has"),
        ("positions", POSITIONS + 1000, "ascending"),
        ("positions", POSITIONS[:1], "this layer's heads"),
        ("known.mass", torch.full((2, 5), torch.nan), "not finite"),
        ("known.mass", torch.zeros(2, 4), "h2o keeps torch.float32"),
        ("known.mass", torch.zeros(2, 5, dtype=torch.float64), "h2o keeps torch.float32"),
        ("known.mass", None, "is not there"),
        ("known.more", torch.zeros(2, 5), "unknown"),
        ("steps", torch.zeros(2, 3, 9, 8), "h2o keeps torch.float32"),
    ],
)
def test_what_cannot_have_been_kept_is_told(name: str, wrong: Tensor | None, says: str) -> None:
    tensors = {key: tensor for key, tensor in {**exported(KEPT), name: wrong}.items() if tensor is not None}
    with pytest.raises(ValueError, match=says):
        check(tensors)
