"""Key tokens (Keyformer, arXiv 2403.09054): heavy hitters by attention with noise, so that runners-up have a chance."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from ..placement import Rows, State
from .h2o import H2OPlacement

DRAWN = 1 << 16
"""Numbers of noise that are drawn."""


@dataclass(frozen=True, kw_only=True, slots=True)
class KeyformerOptions:
    """Settings of `keyformer`."""

    recent: float = 0.3
    """Share of the budget for the last tokens."""
    tau: float = 1.0
    """Temperature of a prompt's scores."""
    growth: float = 0.01
    """What each step of a reply adds to it: the longer a reply, the more equal are the scores that it gives."""
    noise: float = 1.0
    """Times Gumbel noise; 0: none."""

    def __post_init__(self) -> None:
        if not 0 <= self.recent <= 1:
            raise ValueError(f"recent is a share from 0 to 1, not {self.recent}")
        if not 0.01 <= self.tau <= 100:
            raise ValueError(f"tau is 0.01 to 100, not {self.tau}")
        if not 0 <= self.growth <= 1:
            raise ValueError(f"growth is 0 to 1, not {self.growth}")
        if not 0 <= self.noise <= 10:
            raise ValueError(f"noise is 0 to 10, not {self.noise}")


class KeyformerPlacement(H2OPlacement):
    """Idea   once tokens are gone, the softmax makes too much of the heavy ones that are left. So scores are those of a
             Gumbel softmax: noise is added to the logits, and the sum divided by a temperature that grows with each
             step of a reply. Otherwise as `h2o`.
    For    long replies that come back to tokens which got little at first.
    State  one number for each kept token and KV head: the sum of its scores.
    Cost   as `h2o`, and the noise: twice more over the logits.
    Differs  noise is not drawn anew: which of 65536 drawn numbers a query adds to a token is a hash of layer, head and
             both positions, so that the same text has the same scores again, however it came in. A reply is pruned a
             page at a time (published code: each 8 steps). The query heads of a KV head are judged by their mean, and
             the recent share is of a budget that may grow with the text.
    """

    name = "keyformer"
    Options = KeyformerOptions

    def observe(self, state: State, rows: Rows) -> State:
        return self._add(state, rows, lambda logits, at, positions: self._changed(logits, at, positions, rows))

    def _changed(self, logits: Tensor, at: Tensor, positions: Tensor, rows: Rows) -> Tensor:
        options: KeyformerOptions = self.options
        tau = options.tau + options.growth * (at - rows.text.prompt + 1).clamp(min=0)
        noise = gumbel(self.layer, logits.shape[1], at, positions)
        return logits.add_(noise, alpha=options.noise).div_(tau[:, None])


@cache
def drawn(device: torch.device) -> Tensor:
    """Gumbel noise, fp32 `[DRAWN]`."""
    uniform = torch.rand(DRAWN, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return -(-uniform.clamp(1e-12, 1 - 1e-12).log()).log().float().to(device)


def gumbel(layer: int, repeats: int, at: Tensor, positions: Tensor) -> Tensor:
    """Noise of rows at `at` `[n]` for columns at `positions` `[G, b]`: `[G, R, n, b]`."""
    groups = len(positions)
    heads = torch.arange(groups * repeats, device=at.device).view(groups, repeats, 1) + (layer << 16)
    of_rows = _place(_mixed(heads) + at).unsqueeze(-1)
    places = of_rows ^ _place(positions + (1 << 31)).view(groups, 1, 1, -1)
    return drawn(at.device).index_select(0, places.flatten()).view(places.shape)


def _place(numbers: Tensor) -> Tensor:
    """A place among the drawn numbers for each int64: int32, as half of what is moved is these."""
    return (_mixed(numbers) & (DRAWN - 1)).int()


def _mixed(numbers: Tensor) -> Tensor:
    """A hash of 32 bits of each int64."""
    numbers = numbers & 0xFFFFFFFF
    for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B)):
        numbers = ((numbers ^ (numbers >> shift)) * factor) & 0xFFFFFFFF
    return numbers ^ (numbers >> 16)
