"""A team serves whoever calls it, grows, ends and begins again, and leaves a fork alone."""

from __future__ import annotations

import threading

import pytest
import torch
from children import Say, child
from compiled_rows import nothing_yet, product_row, work

from stratakv.kernels.compiled import record as r
from stratakv.kernels.compiled.team import Team


def test_callers_take_turns() -> None:
    weight, found = torch.randn(50, 30), {}

    def call(number: int) -> None:
        x, y = torch.randn(1, 30), nothing_yet(1, 50)
        for _ in range(30):
            work(product_row(weight, y, x, r.F32), threads=3)
        found[number] = (y - x @ weight.T).abs().max()

    threads = [threading.Thread(target=call, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert max(found.values()) < 1e-4
    assert len(found) == 4


@pytest.mark.forks
def test_a_fork_has_threads_of_its_own() -> None:
    weight, x, y = torch.randn(50, 30), torch.randn(1, 30), nothing_yet(1, 50)
    work(product_row(weight, y, x, r.F32))

    def again(say: Say, wait: object) -> None:
        y.fill_(torch.nan)
        work(product_row(weight, y, x, r.F32))
        say(float((y - (x.unsqueeze(1) * weight).sum(-1)).abs().max()))

    with child(again) as fork:
        assert fork.hear() < 1e-4


def test_a_team_grows() -> None:
    """A thread that comes later must not take part in a table of before."""
    weight, x, team = torch.randn(50, 30), torch.randn(1, 30), Team(4)
    for count in (1, 2, 2, 3, 4, 1, 4):
        y = nothing_yet(1, 50)
        team.run(product_row(weight, y, x, r.F32)[None], count)
        torch.testing.assert_close(y, x @ weight.T, rtol=1e-5, atol=1e-5)
    team.close()


def test_a_team_ends_and_begins_again() -> None:
    weight, x = torch.randn(50, 30), torch.randn(1, 30)
    team = Team(2)
    for _ in range(20):
        y = nothing_yet(1, 50)
        team.run(product_row(weight, y, x, r.F32)[None], 2)
        torch.testing.assert_close(y, x @ weight.T, rtol=1e-5, atol=1e-5)
        team.close()
        assert not [thread for thread in threading.enumerate() if thread.name == "compiled-1" and not thread.is_alive()]
