"""The exactness suite on real weights, as `stratakv eval --suite exact` runs it: a minute, for `make compare`."""

from __future__ import annotations

import os

import pytest

from stratakv.runtime import KVConfig
from stratakv.runtime.evaluation.suites import exact


class Silent:
    def start(self, total: int) -> None: ...

    def advance(self, what: str) -> None: ...


class Small(exact.Setting):
    """With host memory for what the checks read, instead of all that this machine could give."""

    def config(self, **kv: object) -> KVConfig:
        return super().config(**{"host_gb": 0.2, **kv})


@pytest.mark.model
@pytest.mark.skipif(not os.environ.get("COMPARE"), reason="a minute; `make compare` runs it")
def test_all_checks_pass_on_the_default_model() -> None:
    result = exact.run(Small("smollm2", "cpu"), ["spectral", "bounds"], 0, Silent())
    assert [check for check in result["checks"] if not check["passed"]] == []
