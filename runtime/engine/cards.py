"""What GPUs of common sizes hold of a model and its KV, by arithmetic: no such card need be there.

    a card    weights | a fifth of the rest: indexes' states, activations | what a sequence holds beside pages
              | workspace | pages

All weights are on the card, all experts among them. Its pages are copies: host memory or the disk has every page.
"""

from __future__ import annotations

from typing import NamedTuple

from ...kernels.compiled import record as r
from ...storage import PageLayout
from ..api.errors import DoesNotFitError
from ..model.model import Model
from .held import held_by
from .planner import FREE_SHARE, GB, chunk_of, plan_within

CARDS_GB = (12, 16, 24)
WEIGHTS = {"bf16": r.BF16, "int8": r.Q8_0, "int4": r.Q4_0}
"""Name -> how matrices are written: a number in 16 bits, or GGUF's blocks of 8 and of 4."""
_HOST_BYTES = 1 << 50
"""Host memory is no limit here."""


class OnCard(NamedTuple):
    """A card, weights, and what it holds beside them."""

    card_gb: int
    weights: str
    weights_bytes: int
    tokens: int | None
    """Tokens whose KV is on the card; None: they do not fit."""
    lacking: str = ""
    """Why not."""


def on_cards(model: Model, layout: PageLayout) -> list[OnCard]:
    """What each card holds with each kind of weights."""
    sizes = {name: weights_bytes(model, name) for name in WEIGHTS}
    return [_on_card(model, layout, card, name, size) for card in CARDS_GB for name, size in sizes.items()]


def weights_bytes(model: Model, weights: str) -> int:
    """Bytes of a model's weights. What is no matrix is in 16 bits."""
    found = 0
    for weight in model.hf.parameters():
        numbers, size = r.BLOCKS[WEIGHTS[weights] if weight.dim() == 2 else r.BF16]
        found += weight.numel() // numbers * size
    return found


def _on_card(model: Model, layout: PageLayout, card: int, weights: str, size: int) -> OnCard:
    free = card * GB - size
    if free <= 0:
        return OnCard(card, weights, size, None, "the weights alone are larger")
    held, chunk = held_by(model, layout), chunk_of("cuda", layout)
    try:
        plan = plan_within(int(free * FREE_SHARE), _HOST_BYTES, layout, len(model.tiered), chunk, held)
    except DoesNotFitError as error:
        return OnCard(card, weights, size, None, str(error))
    return OnCard(card, weights, size, plan.compute_pool_bytes // plan.token_bytes)
