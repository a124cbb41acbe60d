"""Runs of the exactness suite within a test's memory."""

from __future__ import annotations

from typing import Any

from stratakv.runtime import KVConfig
from stratakv.runtime.evaluation.suites import exact


class Silent:
    """Tells nobody how far a run is."""

    def start(self, total: int) -> None: ...

    def advance(self, what: str) -> None: ...


class Small(exact.Setting):
    """With host memory for what the checks read, instead of all that this machine could give."""

    def config(self, **kv: Any) -> KVConfig:
        return super().config(**{"host_gb": 0.2, **kv})
