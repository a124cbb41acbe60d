"""A prompt and its reply have budgets of their own (SCOPE, arXiv 2412.13649)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ..placement import State, Text
from .snapkv import SnapKVOptions, SnapKVPlacement


@dataclass(frozen=True, kw_only=True, slots=True)
class ScopeOptions(SnapKVOptions):
    """Settings of `scope`; `window` and `pool` are of a prompt."""

    reply: int = 1024
    """Tokens of a reply to keep."""
    recent: int = 256
    """The last of them; the others are those that got most attention."""
    delta: int = 0
    """Keep `recent` tokens and one more for each so many of the reply, instead of `reply`; 0: `reply`."""

    def __post_init__(self) -> None:
        SnapKVOptions.__post_init__(self)
        if not 1 <= self.reply <= 1 << 20:
            raise ValueError(f"reply is 1 to {1 << 20} tokens, not {self.reply}")
        if not 0 <= self.recent <= self.reply:
            raise ValueError(f"recent is 0 to {self.reply} tokens, as reply is, not {self.recent}")
        if not 0 <= self.delta <= 1024:
            raise ValueError(f"delta is 0 to 1024 tokens, not {self.delta}")


class ScopePlacement(SnapKVPlacement):
    """Idea   a long reply would displace its prompt, and its own first heavy hitters later ones: what was kept of a
             prompt stays as it is, and a reply has a budget beside it, for its last tokens and for those of its earlier
             ones that the latest queries attend to. A prompt's tokens are chosen as by `snapkv`.
    For    long replies to long prompts: neither displaces the other.
    State  as `snapkv`.
    Cost   as `snapkv`; at each page of a reply, the attention weights of its queries.
    Differs  a reply is pruned a page at a time, by the mean of the page's queries (published: by each step's query; or,
             where it is discontinuous, by each `delta`th). `delta=15` is the published adaptive form. `keep` is a
             prompt's budget; the reply's comes to it, but `keep=1` keeps all of both. When the next prompt ends, all
             that is left is judged as one text.
    """

    name = "scope"
    Options = ScopeOptions
    prunes = True

    def scores(self, state: State, text: Text) -> Tensor:
        return state["votes"] if _replied(text) else super().scores(state, text)

    def forced(self, text: Text, budget: int) -> Tensor:
        at, replied = text.positions, _replied(text)
        if not replied:
            return super().forced(text, budget)
        recent: int = max(self.params.local, self.options.recent)
        return (at >= 0) & ((at < text.prompt) | (at >= text.prompt + replied - recent))

    def keep(self, state: State, text: Text, budget: int) -> Tensor:
        if (replied := _replied(text)) and budget < text.prompt + replied:
            of_prompt = (text.positions >= 0) & (text.positions < text.prompt)
            budget = int(of_prompt.sum(1).max()) + self._of_reply(replied)
        return super().keep(state, text, budget)

    def _of_reply(self, replied: int) -> int:
        """Tokens to keep of a reply of so many."""
        options = self.options
        return int(options.recent + replied // options.delta if options.delta else options.reply)


def _replied(text: Text) -> int:
    """Tokens of the reply so far, kept or not."""
    return max(0, int(text.positions.max()) + 1 - text.prompt)
