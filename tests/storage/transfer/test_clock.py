"""The clock: its time only goes on, and everybody asks the one that stands in its place."""

from __future__ import annotations

import re
import time

import pytest
from places import ROOT

from stratakv.storage.transfer import clock


def test_it_counts_seconds_and_never_goes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """Even if the time of day is set back meanwhile."""
    before, first = time.perf_counter(), clock.now()
    monkeypatch.setattr(time, "time", lambda: 0.0)
    second, after = clock.now(), time.perf_counter()
    assert 0 < second - first <= after - before


def test_nobody_keeps_a_hold_of_now() -> None:
    """Who imported the function would not ask a clock that is put in the module's place."""
    files = [path for folder in ("runtime", "storage", "examples") for path in (ROOT / folder).rglob("*.py")]
    imports = [line for path in files for line in re.findall(r"^from .*\bclock\b.*", path.read_text(), re.MULTILINE)]
    assert len(imports) > 5
    assert [line for line in imports if not line.endswith("import clock")] == []
