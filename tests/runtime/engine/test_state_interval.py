"""Where states are left: seldom enough that they add a quarter to the pages, at places where texts may be cut."""

from __future__ import annotations

import pytest

from stratakv.runtime.engine.state_interval import state_interval


@pytest.mark.parametrize(
    ("state", "token", "page", "interval"),
    [
        (48 * 4 * (3 * 10240 + 48 * 128 * 128), 0.8 * 16 * 4096, 16, 12032),
        (163_840, 0.8 * 12_288, 16, 1024),
        (163_840, 1.0, 48, 655_488),
        (0, 100.0, 16, 0),
        (100, 0.0, 16, 0),
    ],
)
def test_states_between_add_a_quarter_at_most(state: int, token: float, page: int, interval: int) -> None:
    assert state_interval(state, token, page) == interval
    if interval:
        assert interval % 64 == interval % page == 0
        assert state <= interval * token / 4
