"""What GPUs of common sizes hold of a model and its KV, by arithmetic: no such card need be there.

    a card    weights | a fifth of the rest: indexes' states, activations | what a sequence holds beside pages
              | workspace | pages

All weights are on the card, all experts among them, rounded as `weights=int8` and `weights=int4` have them. Its pages
are copies: host memory or the disk has every page.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from ...storage import PageLayout
from ..api.errors import DoesNotFitError
from ..model.decoder import without_memory
from ..model.model import Model
from ..model.packing import Packing
from .held import held_by
from .planner import FREE_SHARE, GB, chunk_of, plan_within

CARDS_GB = (12, 16, 24)
WEIGHTS = {"bf16": None, "int8": Packing("int8"), "int4": Packing("int4")}
"""Name -> how they are rounded."""
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
    decoder = without_memory(model.config)
    sizes = {name: _size(decoder, name) for name in WEIGHTS}
    return [_on_card(model, layout, card, name, size) for card in CARDS_GB for name, size in sizes.items()]


def weights_bytes(decoder: Any, weights: str) -> int:
    """Bytes of a model's weights; what is not rounded is in 16 bits. Raises ValueError if they cannot be rounded so."""
    packing = WEIGHTS[weights]
    return sum(2 * weight.numel() for weight in decoder.parameters()) if packing is None else packing.bytes_of(decoder)


def _size(decoder: Any, weights: str) -> int | str:
    """Of all weights, or why there is none."""
    try:
        return weights_bytes(decoder, weights)
    except ValueError as error:
        return str(error)


def _on_card(model: Model, layout: PageLayout, card: int, weights: str, size: int | str) -> OnCard:
    if isinstance(size, str):
        return OnCard(card, weights, 0, None, size)
    free = card * GB - size
    if free <= 0:
        return OnCard(card, weights, size, None, "the weights alone are larger")
    held, chunk = held_by(model, layout), chunk_of("cuda", layout)
    try:
        plan = plan_within(int(free * FREE_SHARE), _HOST_BYTES, layout, len(model.tiered), chunk, held)
    except DoesNotFitError as error:
        return OnCard(card, weights, size, None, str(error))
    return OnCard(card, weights, size, plan.compute_pool_bytes // plan.token_bytes)
