"""The exactness suite on real weights, as `stratakv eval --suite exact` runs it: minutes, for `make compare`."""

from __future__ import annotations

import pytest
from exact_runs import Silent, Small

from stratakv.runtime.evaluation.suites import exact


@pytest.mark.model
def test_all_checks_pass_on_the_default_model() -> None:
    result = exact.run(Small("smollm2", "cpu"), ["spectral", "bounds"], 0, Silent())
    assert [check for check in result["checks"] if not check["passed"]] == []
