"""Layers share a budget by how they attend (CAKE, arXiv 2503.12491)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..placement import ROWS, Placement, Rows, State, Text, pooled, shares


@dataclass(frozen=True, kw_only=True, slots=True)
class CakeOptions:
    """Settings of `cake`."""

    window: int = 32
    """The last tokens of a prompt: their queries vote, and they stay themselves."""
    pool: int = 5
    """Neighbouring tokens that share their votes, an odd number."""
    gamma: float = 200.0
    """How much the variance of a token's votes counts, beside their mean."""
    tau1: float = 1.0
    """The higher, the less a layer's entropy matters for its budget."""
    tau2: float = 1.0
    """The same for its variance."""

    def __post_init__(self) -> None:
        if not 1 <= self.window <= ROWS:
            raise ValueError(f"window is 1 to {ROWS} tokens, not {self.window}")
        if not 1 <= self.pool <= 63 or self.pool % 2 == 0:
            raise ValueError(f"pool is an odd number from 1 to 63, not {self.pool}")
        if not 0 <= self.gamma <= 1e6:
            raise ValueError(f"gamma is 0 to 1e6, not {self.gamma}")
        for name, tau in (("tau1", self.tau1), ("tau2", self.tau2)):
            if not 0.01 <= tau <= 100:
                raise ValueError(f"{name} is 0.01 to 100, not {tau}")


class CakePlacement(Placement):
    """Idea   a layer whose attention is spread over many tokens (entropy H), or moves from query to query (variance V),
             needs more of them: layers have budgets in proportion to H^(1/tau1) V^(1/tau2). Of a layer's tokens those
             stay whose votes by the last queries have a high mean or a high variance, smoothed.
    For    tight budgets where layers attend very differently.
    State  one number for each kept token and KV head, the votes; and the layer's preference.
    Cost   attention weights of `window` queries, once for each prompt; at each page of a reply, those of its queries.
    Differs  all layers' preferences are known before the first token goes (published: a cascade during prefill, which
             ends at the same budgets). What a short text leaves over goes to the other layers in proportion (published:
             evenly). A reply is pruned a page at a time, by mean and variance of the page's queries (published: at each
             step by its query). The published code has values of tau1 and tau2 for each model; the default is theirs
             for any other.
    """

    name = "cake"
    Options = CakeOptions
    columns = ("votes",)
    prunes = True

    @property
    def rows(self) -> int:
        return int(self.options.window)

    def start(self, keys: Tensor, values: Tensor) -> State:
        return {"preference": torch.zeros(1, dtype=torch.float32)}

    def observe(self, state: State, rows: Rows) -> State:
        positions = rows.text.positions
        before = (positions >= 0) & (positions < positions.amax() + 1 - self.options.window)
        votes, entropy, variance = state["votes"] * 0.0, state["votes"].new_zeros(1), state["votes"].new_zeros(1)
        for _, columns, weights in rows.weights():  # all rows at once
            weights = weights * before[:, None, None, columns]
            spread = weights.var(2) if weights.shape[2] > 1 else torch.zeros_like(weights[:, :, 0])
            votes[:, columns] = (weights.mean(2) + self.options.gamma * spread).mean(1)
            entropy -= (weights * (weights + 1e-10).log()).sum()
            variance += spread.sum()
        options = self.options
        preference = entropy.clamp(min=0) ** (1 / options.tau1) * variance ** (1 / options.tau2)
        is_reply = rows.start >= rows.text.prompt
        return {"votes": votes, "preference": state["preference"] if is_reply else preference}

    def scores(self, state: State, text: Text) -> Tensor:
        return pooled(state["votes"], self.options.pool)

    def recent(self, budget: int) -> int:
        return int(self.options.window)

    def wish(self, state: State, text: Text) -> Tensor:
        """The preference, and how many tokens there are, `[2]`."""
        preference = state["preference"].cpu()
        return torch.cat([preference, torch.full_like(preference, text.positions.shape[1])])

    def divide(self, wishes: Sequence[Tensor], budget: int) -> list[int]:
        preferences, counts = torch.stack(list(wishes)).unbind(1)
        return shares(preferences.tolist(), budget, self.least(budget), [int(count) for count in counts])
