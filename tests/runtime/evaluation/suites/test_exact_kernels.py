"""The kernels' checks go red for a part that is dropped, a token that sees a later one, and a wrong scale."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from stratakv.kernels.decode_attention import decode_attention
from stratakv.kernels.merge_states import merge_states
from stratakv.kernels.prefill_attention import prefill_attention
from stratakv.runtime.evaluation.suites import exact_kernels
from stratakv.runtime.evaluation.suites.exact_kernels import KERNELS


def normal(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


def decode_error(*, same_keys: bool = False) -> float:
    return exact_kernels._decode_error(normal, 3, 65, 1.0, same_keys)


def prefill_error(*, same_keys: bool = False) -> float:
    return exact_kernels._prefill_error(normal, 3, 15, 1.0, same_keys)


@pytest.mark.parametrize("same_keys", [False, True])
def test_both_kernels_are_exact(same_keys: bool) -> None:
    assert decode_error(same_keys=same_keys) <= KERNELS[1.0]
    assert prefill_error(same_keys=same_keys) <= KERNELS[1.0]


def test_the_merge_drops_a_part(monkeypatch: pytest.MonkeyPatch) -> None:
    def dropping(outs: list[Any], lses: list[Any]) -> Any:
        return merge_states(outs[: max(1, len(outs) - 1)], lses[: max(1, len(lses) - 1)])

    monkeypatch.setattr(exact_kernels, "merge_states", dropping)
    found = {check.name: check.passed for check in exact_kernels.kernels(0, torch.device("cpu"))}
    assert found == {
        f"{kernel} attention in merged parts = float64, spread {spread}": False
        for kernel in ("decode", "prefill") for spread in (1, 30)
    }  # fmt: skip


def test_a_token_sees_the_later_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    def seeing(*arguments: Tensor, scale: float, causal: bool) -> Any:
        return prefill_attention(*arguments, scale=scale, causal=False)

    monkeypatch.setattr(exact_kernels, "prefill_attention", seeing)
    assert prefill_error() > 100 * KERNELS[1.0]
    assert prefill_error(same_keys=True) > 100 * KERNELS[1.0], "values differ"


def test_scores_are_scaled_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    """By a thousandth."""

    def scaling(*arguments: Any, scale: float) -> Any:
        return decode_attention(*arguments, scale=1.001 * scale)

    monkeypatch.setattr(exact_kernels, "decode_attention", scaling)
    assert decode_error() > KERNELS[1.0]
    assert decode_error(same_keys=True) <= KERNELS[1.0], "equal scores stay equal"
