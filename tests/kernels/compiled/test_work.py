"""Threads work through the rows of a table in order, and add their times where rows say."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import torch
from compiled_rows import nothing_yet, product_row, work

from stratakv.kernels.compiled import record as r
from stratakv.kernels.compiled.team import Team


def test_each_row_sees_what_the_one_before_it_left() -> None:
    turn = torch.linalg.qr(torch.randn(24, 24))[0].contiguous()
    states = [torch.randn(1, 24), *(nothing_yet(1, 24) for _ in range(200))]
    work(*(product_row(turn, y, x, r.F32, chunk=1) for x, y in pairwise(states)), threads=3)
    expected = states[0].double() @ torch.linalg.matrix_power(turn.double().T, 200)
    torch.testing.assert_close(states[-1].double(), expected, rtol=1e-3, atol=1e-4)


def test_times_are_added_where_rows_say() -> None:
    weight, x, y = torch.randn(50, 30), torch.randn(1, 30), nothing_yet(1, 50)
    first, second = product_row(weight, y, x, r.F32), product_row(weight, y, x, r.F32)
    second[r.MARK] = 2
    times = np.zeros(3, dtype=np.int64)
    Team(1).run(np.stack([first, second]), times=times)
    assert times[0] > 0
    assert times[1] == 0
    assert times[2] > 0


def test_rows_up_to_a_barrier_are_timed_under_its_mark() -> None:
    """The last row of a table is one, whatever it says."""
    weight, x, y = torch.randn(50, 30), torch.randn(1, 30), nothing_yet(1, 50)
    rows = np.stack([product_row(weight, y, x, r.F32)] * 4)
    rows[:, r.MARK], rows[:, r.BARRIER] = [1, 2, 3, 4], [0, 1, 0, 0]
    times = np.zeros(5, dtype=np.int64)
    Team(1).run(rows, times=times)
    assert (times > 0).tolist() == [False, False, True, False, True]


def test_a_row_without_items_is_passed_over() -> None:
    """Nor is anything made for it."""
    weight, x, y, total = torch.randn(50, 30), torch.randn(1, 30), nothing_yet(1, 50), nothing_yet(1, 30)
    empty = product_row(weight, y, x, r.F32)
    empty[[r.ITEMS, r.P_INPUT, r.P_D, r.P_SUM]] = 0, r.SUM, x.data_ptr(), total.data_ptr()
    work(empty, threads=2)
    assert y.isnan().all()
    assert total.isnan().all()
    empty[r.ITEMS] = 17
    work(empty, threads=2)
    torch.testing.assert_close(total, 2 * x)
    torch.testing.assert_close(y, 2 * x @ weight.T, rtol=1e-5, atol=1e-5)
