"""The gated delta rule (Gated DeltaNet, arXiv 2412.06464): a matrix a head that each token lets fade, reads with its
key, and corrects.

    S <- exp(g) S        d = beta (v - S' k)        S <- S + k d'        out = S' q

Shapes  q, k [T, N, K]   v [T, N, V]   g, beta [T, N]   S [N, K, V]   out [T, N, V]   (N = heads)
Dtypes  fp32 in and out
Limits  g <= 0; q and k are of length one, q times a scale

Many tokens go 64 at a time: what those do to each other is one triangular system, and the state is read and written
once for all of them. The last ones are filled up with tokens that change nothing, so a text may be cut anywhere.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

CHUNK = 64
_FORGOTTEN = -28.0
"""What is left of less than exp of this is nothing: 1e-12 of a value is beyond what fp32 adds to another. Products of
such shares are denormal numbers, which processors multiply with some hundred times slower."""


def delta_rule_reference(
    q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor, state: Tensor
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """What the tokens read, and the state behind them: the rule as it is written above."""
    outs = []
    for row in range(q.shape[0]):
        state = state * g[row].exp()[:, None, None]
        wrong = v[row] - (state * k[row].unsqueeze(-1)).sum(1)
        state = state + k[row].unsqueeze(-1) * (beta[row].unsqueeze(-1) * wrong).unsqueeze(1)
        outs.append((state * q[row].unsqueeze(-1)).sum(1))
    return torch.stack(outs), state


def delta_rule(q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """The same, one token or many of them; `state` is not written to."""
    return _step(q, k, v, g, beta, state) if q.shape[0] == 1 else _chunks(q, k, v, g, beta, state)


def _step(q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """The faded state is read with key and query at once; what the token adds reaches its own query as (k q) d."""
    fade = g[0].exp()[:, None, None]
    read = torch.bmm(torch.stack([k[0], q[0]], 1), state) * fade
    d = beta[0].unsqueeze(-1) * (v[0] - read[:, 0])
    out = read[:, 1] + (k[0] * q[0]).sum(-1, keepdim=True) * d
    return out.unsqueeze(0), torch.mul(state, fade).baddbmm_(k[0].unsqueeze(2), d.unsqueeze(1))


def _chunks(q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """Inside a chunk, token i is told what tokens j < i have changed of its own value: (I + L) d = beta (v - what the
    faded state has for k), where L_ij = beta_i (k_i k_j) fade_ij. The right side is linear in the state, so both parts
    of it go through the system for all chunks at once, and what is left for the chunks in turn are three products."""
    count, width = q.shape[0], v.shape[-1]
    q, k, v = (_chunked(rows.transpose(0, 1)) for rows in (q, k, v))
    g, beta = (_chunked(rows.T.unsqueeze(-1)) for rows in (g, beta))
    # A fade is the difference of two sums over up to 64 tokens, where fp32 leaves 1e-4 of a head that forgets fast.
    total = g.double().cumsum(-2)
    fade = _left(total - total.transpose(-1, -2)).tril()
    since, until = _left(total), _left(total[..., -1:, :] - total)
    rhs = torch.cat([v, k * since], -1) * beta
    solved = torch.linalg.solve_triangular(k @ k.mT * fade * beta, rhs, upper=False, unitriangular=True)
    values, keys = solved.split([width, k.shape[-1]], -1)
    among, q, k, whole = q @ k.mT * fade, q * since, (k * until).mT, since[..., -1:, :]
    outs = []
    for chunk in range(q.shape[1]):
        d = values[:, chunk] - keys[:, chunk] @ state
        outs.append(q[:, chunk] @ state + among[:, chunk] @ d)
        state = state * whole[:, chunk] + k[:, chunk] @ d
    return torch.cat(outs, 1)[:, :count].transpose(0, 1), state


def _left(sums: Tensor) -> Tensor:
    """The shares that are left after fading by exp of such sums."""
    return F.threshold(sums.float(), _FORGOTTEN, -torch.inf).exp()


def _chunked(rows: Tensor) -> Tensor:
    """`[N, T, D]` as `[N, chunks, 64, D]`, zeros behind the last."""
    padded = F.pad(rows.contiguous(), (0, 0, 0, -rows.shape[1] % CHUNK))
    return padded.reshape(rows.shape[0], -1, CHUNK, rows.shape[2])
