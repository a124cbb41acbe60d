"""A model over an open store, and how much more of a context they hold: the part of a `Runtime` that conversations
need."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

from ...storage import StorageFullError, TieredStore
from ..api.config import KVConfig
from ..api.errors import DoesNotFitError
from ..engine.engine import Engine
from ..engine.planner import Plan
from ..engine.profile import Profiles
from ..model.model import Model


class Loaded:
    """A model over an open store; `runtime.Runtime` opens and closes it."""

    def __init__(
        self, model: Model, store: TieredStore, engine: Engine, plan: Plan, config: KVConfig, name: str,
        profiles: Profiles,
    ) -> None:  # fmt: skip
        self.model, self.store, self.engine, self.plan, self.config = model, store, engine, plan, config
        self.name, self.profiles = name, profiles

    @property
    def tokenizer(self) -> Any:
        """The model's Hugging Face tokenizer."""
        return self.model.tokenizer

    def check_fits(self, held: int, new: int, what: str) -> None:
        """Raise DoesNotFitError if `held + new` tokens exceed the model's window or the tiers."""
        self.check_window(held, new, what)
        rope = self.model.rope
        if held and rope.reach(held + new) != rope.reach(held):  # held tokens are computed again, beside the old ones
            what, new = f"{what}, with {held} tokens that it makes longer and are computed again,", held + new
        self._check_room(held, new, what)

    def check_window(self, held: int, new: int, what: str) -> None:
        """Raise DoesNotFitError if `held + new` tokens exceed the model's window."""
        total = held + new
        if total > self.model.max_positions:
            raise DoesNotFitError(
                f"{what} does not fit: {held} tokens in context + {new} new = {total}, but {self.name} was trained "
                f"for {self.model.max_positions}; shorten it, start a new conversation, or use a model with a "
                "longer window"
            )

    def _check_room(self, held: int, new: int, what: str) -> None:
        """Raise DoesNotFitError if the tiers have no room. Room on disk is claimed, for which other folders of the
        store give way. The `held` tokens are somewhere already: where the disk has no room, `new` tokens may stay in
        memory."""
        disk = self.store.disk
        if disk is None:
            self.plan.check(held + new, what)
            return
        need = self.plan.disk_need(held + new)
        if disk.claim(need) >= need:
            return
        with suppress(StorageFullError):  # pages that the disk has room for need not stay in memory
            self.store.flush()
        if new > self._memory_tokens():
            self.plan.check(held + new, what, disk.cap_bytes)

    def _memory_tokens(self) -> int:
        """The number of further tokens that host memory holds if the disk takes no more of them."""
        return self.plan.host_tokens(self.store.num_unstored)

    def room_tokens(self, held: int) -> int:
        """The number of tokens that may join `held` ones, as far as the tiers go."""
        if self.store.disk is None:
            return self.plan.capacity_tokens() - held
        return max(self.plan.disk_tokens(self.store.disk.cap_bytes) - held, self._memory_tokens())
