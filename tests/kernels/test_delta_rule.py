"""The gated delta rule: many tokens at once, cut anywhere, leave what one after another leave."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from stratakv.kernels.delta_rule import CHUNK, delta_rule, delta_rule_reference

HEADS, KEY, VALUE = 3, 16, 12
CLOSE = 3e-6
"""Of the largest number: fp32 to fp64."""


def drawn(count: int, forgets: float) -> tuple[list[Tensor], Tensor]:
    """q, k, v, g, beta of so many tokens, and a state. Keys are alike, so that a token corrects what others wrote."""
    draw = torch.Generator().manual_seed(count)

    def randn(*shape: int) -> Tensor:
        return torch.randn(shape, generator=draw)

    q, k = (torch.nn.functional.normalize(randn(count, HEADS, KEY) + 1, dim=-1) for _ in range(2))
    g = -forgets * torch.rand((count, HEADS), generator=draw)
    return [q, k, randn(count, HEADS, VALUE), g, randn(count, HEADS).sigmoid()], randn(HEADS, KEY, VALUE)


def assert_close(found: Tensor, exact: Tensor) -> None:
    assert found.dtype == torch.float32
    assert (found - exact).abs().max() <= CLOSE * exact.abs().max()


@pytest.mark.parametrize("forgets", [0.001, 1.0, 40.0])
@pytest.mark.parametrize("count", [1, 2, CHUNK - 1, CHUNK, 3 * CHUNK + 5])
def test_chunks_are_the_rule(count: int, forgets: float) -> None:
    inputs, state = drawn(count, forgets)
    before = state.clone()
    out, behind = delta_rule(*inputs, state)
    exact_out, exact_behind = delta_rule_reference(*(rows.double() for rows in inputs), state.double())
    assert_close(out, exact_out)
    assert_close(behind, exact_behind)
    assert torch.equal(state, before)


def test_a_text_may_be_cut_anywhere() -> None:
    inputs, state = drawn(200, 0.5)
    whole, whole_state = delta_rule(*inputs, state)
    outs, first = [], 0
    for stop in (1, 2, 67, 131, 200):
        out, state = delta_rule(*(rows[first:stop] for rows in inputs), state)
        outs.append(out)
        first = stop
    assert_close(torch.cat(outs), whole)
    assert_close(state, whole_state)


def test_what_is_as_good_as_forgotten_is_no_denormal_number(monkeypatch: pytest.MonkeyPatch) -> None:
    """Products of such numbers are right and take some hundred times longer."""
    given: list[Tensor] = []
    solve = torch.linalg.solve_triangular
    monkeypatch.setattr(torch.linalg, "solve_triangular", lambda *of, **how: given.extend(of) or solve(*of, **how))
    inputs, state = drawn(2 * CHUNK, 4.0)
    out, behind = delta_rule(*inputs, state)
    assert given
    for numbers in (*given, out, behind):
        assert not ((numbers != 0) & (numbers.abs() < torch.finfo(torch.float32).tiny)).any()
