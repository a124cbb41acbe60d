"""What a sequence holds beside its pages: the states of recurrent layers, and the windows of sliding ones.

They are in the compute tier, as large for a short text as for a long one.
"""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

from ...storage import PageLayout
from ..layers.recurrent import MOST_STATES, RecurrentLayer
from ..layers.sliding import RUNS, SlidingLayer
from ..model.model import Model


class Held(NamedTuple):
    """Bytes, those of all layers together."""

    state_bytes: int = 0
    """One state of the recurrent layers."""
    window_bytes: int = 0
    """What the sliding layers hold."""

    @property
    def sequence_bytes(self) -> int:
        """The most that a sequence holds."""
        return MOST_STATES * self.state_bytes + self.window_bytes

    @property
    def left_bytes(self) -> int:
        """The most that is left at one place of a text for later ones (`state_interval`)."""
        return self.state_bytes + self.window_bytes // RUNS

    @property
    def named(self) -> str:
        """What it is, for people."""
        parts = {f"{MOST_STATES} states": self.state_bytes, "windows": self.window_bytes}
        return " and ".join(name for name, count in parts.items() if count)


NOTHING = Held()


def held_by(model: Model, layout: PageLayout) -> Held:
    """What a sequence of a model holds whose pages have that layout."""
    own = slice(model.num_writing)  # layers that share hold nothing
    states = [RecurrentLayer.bytes_for(shapes) for shapes in model.states[own] if shapes is not None]
    windows = [
        SlidingLayer.bytes_for(window, replace(layout, num_heads=shape.kv_heads, head_dim=shape.dim), model.dtype)
        for window, shape, state in zip(model.windows[own], model.shapes[own], model.states[own], strict=True)
        if window is not None and state is None
    ]
    return Held(sum(states), sum(windows))
