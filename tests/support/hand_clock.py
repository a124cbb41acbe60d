"""A clock that a test moves: figures are then whole numbers that can be told beforehand, whatever the machine does."""

from __future__ import annotations

from typing import Any

import pytest


class HandClock:
    """Time passes where a test says so, and nowhere else."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._patch, self._now = monkeypatch, 1000.0
        monkeypatch.setattr("stratakv.storage.transfer.clock.now", lambda: self._now)

    def passes(self, seconds: float) -> None:
        self._now += seconds

    def takes(self, owner: Any, method: str, seconds: float) -> None:
        """Every call of `owner.method` takes so long from now on."""
        work = getattr(owner, method)

        def slow(*args: Any, **kwargs: Any) -> Any:
            self.passes(seconds)
            return work(*args, **kwargs)

        self._patch.setattr(owner, method, slow)
