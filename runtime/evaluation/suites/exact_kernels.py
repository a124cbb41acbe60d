"""Attention kernels in parts and merged, against one float64 softmax."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import pairwise

import torch
from torch import Tensor

from ....kernels.decode_attention import decode_attention
from ....kernels.merge_states import merge_states
from ....kernels.prefill_attention import prefill_attention
from .check import Check, relative_error

KERNELS = {1.0: 2e-5, 30.0: 5e-3}
"""The largest error as a share of the largest output, by the spread of queries and keys: a score near 10^4 is itself
rounded to 10^-3."""
_DIM, _SCALE = 64, 0.125
Random = Callable[..., Tensor]
"""Makes normal numbers of a shape on the device under test."""


def kernels(seed: int, device: torch.device) -> Iterator[Check]:
    """Check attention over parts, merged, against one float64 softmax."""
    draw = torch.Generator().manual_seed(seed)
    random = lambda *shape: torch.randn(*shape, generator=draw, dtype=torch.float32).to(device)  # noqa: E731
    for spread, bound in KERNELS.items():
        cases = [(repeats, length, False) for repeats in (1, 3, 4, 9) for length in (1, 15, 65, 513)] + [(3, 65, True)]
        decode = max(_decode_error(random, repeats, length, spread, same) for repeats, length, same in cases)
        yield Check(f"decode attention in merged parts = float64, spread {spread:g}", decode, bound)
        prefill = max(_prefill_error(random, repeats, length, spread, same) for repeats, length, same in cases)
        yield Check(f"prefill attention in merged parts = float64, spread {spread:g}", prefill, bound)


def _random_kv(random: Random, length: int, spread: float, same: bool) -> tuple[Tensor, Tensor]:
    keys, values = random(2, length, _DIM) * spread, random(2, length, _DIM)
    return torch.ones_like(keys) if same else keys, values


def _decode_error(random: Random, repeats: int, length: int, spread: float, same_keys: bool) -> float:
    k, v = _random_kv(random, length, spread, same_keys)
    q = random(2, repeats, _DIM) * spread
    cuts = [0, *sorted({length // 3, length // 2} - {0}), length]
    states = [decode_attention(q, [(k[:, a:b], v[:, a:b])], scale=_SCALE) for a, b in pairwise(cuts)]
    merged = merge_states([out for out, _ in states], [lse for _, lse in states])[0]
    return relative_error(merged, _exact(q, k, v, repeats, causal=False))


def _prefill_error(random: Random, repeats: int, length: int, spread: float, same_keys: bool) -> float:
    k, v = _random_kv(random, length, spread, same_keys)
    q = random(2 * repeats, length, _DIM) * spread
    states = [prefill_attention(q, k, v, scale=_SCALE, causal=causal) for causal in (False, True)]
    merged = merge_states([out for out, _ in states], [lse for _, lse in states])[0]
    return relative_error(merged, _exact(q, torch.cat([k, k], 1), torch.cat([v, v], 1), repeats, causal=True))


def _exact(q: Tensor, k: Tensor, v: Tensor, repeats: int, *, causal: bool) -> Tensor:
    """Exact attention for q `[G, R, D]`, or for q `[H, T, D]` whose rows see all keys but the later ones of the last
    T."""
    keys, values = k.double(), v.double()
    if causal:
        keys, values = keys.repeat_interleave(repeats, 0), values.repeat_interleave(repeats, 0)
    scores = q.double() @ keys.transpose(1, 2) * _SCALE
    if causal:
        rows = q.shape[1]
        later = torch.ones(rows, rows, dtype=torch.bool, device=q.device).triu(1)
        scores[:, :, -rows:] = scores[:, :, -rows:].masked_fill(later, float("-inf"))
    return scores.softmax(-1) @ values
