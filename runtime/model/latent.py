"""Latent attention: a token leaves one vector, from which the keys and values of all heads are made.

    hidden -> [latent | rotated part] of the token, hidden -> low rank -> [plain part | rotated part] of each query head

A head's key is its own rows of `kv_b_proj` times the latent, and the rotated part, which all heads share; its value is
other rows of it times the latent. Few rows do without: the query's plain part is multiplied with the key's rows, and
what attention gives with the value's (docs/decisions/0046). So there is one KV head, whose keys are

    [rotated part | latent]

and whose values are the latents, the last numbers of the keys. For many rows of a prompt it costs less to make the keys
and values of all heads, some tokens at a time (`LatentHeads`).

Shapes  B sequences, T tokens, C hidden size, H query heads
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..untrusted.families import FAMILIES
from ..untrusted.family import Form
from .mlp import stated
from .norm import Norm
from .products import Linear

_EPS = 1e-6
"""Of both norms inside, whatever `rms_norm_eps` says: transformers' classes give them none."""


@dataclass(frozen=True, slots=True)
class Latent:
    """The widths of latent attention."""

    rank: int
    """Of the latent, and so of values as they are attended to."""
    rotated: int
    plain: int
    """Of a query head's part that is not rotated."""
    value: int
    """Of a head's value, once it is made."""
    query_rank: int | None
    """Between the two products that make queries; None: there is one."""

    @classmethod
    def of(cls, config: Any) -> Latent | None:
        """That of a model; None if its attention is another one."""
        if not FAMILIES[config.model_type].form.is_latent:
            return None
        return cls(
            config.kv_lora_rank, config.qk_rope_head_dim, config.qk_nope_head_dim, config.v_head_dim,
            config.q_lora_rank,
        )  # fmt: skip

    @property
    def width(self) -> int:
        """Of a key as it is attended to."""
        return self.rotated + self.rank

    @property
    def head(self) -> int:
        """Of a query head before the key's rows are multiplied in."""
        return self.plain + self.rotated


@dataclass(frozen=True, slots=True)
class LatentHeads:
    """What makes the keys and values of a layer's heads from latents; a query head is [rotated part | plain part].

    Args:
        weight: of `kv_b_proj`.
    """

    weight: Tensor
    sizes: Latent

    @property
    def expands_from(self) -> float:
        """The number of rows from which it costs fewer products to make keys and values than to attend to latents,
        whose values are as wide as their keys then (`prefill_attention`)."""
        sizes = self.sizes
        saved = 2 * sizes.width - sizes.head - sizes.value
        return sizes.rank * (sizes.plain + sizes.value) / saved if saved > 0 else math.inf

    def absorbed(self, q: Tensor) -> Tensor:
        """Queries `[.., H, T, head]` as they are multiplied with latents, `[.., H, T, width]`."""
        rotated, plain = torch.split(q, [self.sizes.rotated, self.sizes.plain], -1)
        return torch.cat([rotated, plain @ by_head(self.weight, self.sizes)[0]], -1)

    def made(self, out: Tensor) -> Tensor:
        """What attention to latents gave, `[.., H, T, rank]`, as the heads' values, `[.., H, T, value]`."""
        return out @ by_head(self.weight, self.sizes)[1].transpose(1, 2)

    def expanded(self, keys: Tensor) -> tuple[Tensor, Tensor]:
        """Keys `[H, n, head]` and values `[H, n, value]` of the tokens that keys `[1, n, width]` are of."""
        rotated, latent = torch.split(keys[0], [self.sizes.rotated, self.sizes.rank], -1)
        each = F.linear(latent, self.weight).view(len(latent), -1, self.sizes.plain + self.sizes.value).transpose(0, 1)
        plain, values = torch.split(each, [self.sizes.plain, self.sizes.value], -1)
        return torch.cat([rotated.expand(len(plain), -1, -1), plain], -1), values.contiguous()


AttendHeads = Callable[[int, Tensor, Tensor, float, LatentHeads], Tensor]
"""(layer, q [B,H,T,head], k [B,1,T,width], scale, what makes heads of k) -> [B,H,T,value]; q and k un-rotated."""


class LatentAttention(nn.Module):
    def __init__(self, config: Any, form: Form, at: int) -> None:
        super().__init__()
        latent = Latent.of(config)
        assert latent is not None
        self.latent, self.layer_idx, self.heads = latent, at, config.num_attention_heads
        hidden, bias = config.hidden_size, stated(form.qkv_bias, config)
        if latent.query_rank is None:
            self.q_proj = Linear(hidden, self.heads * latent.head, bias=False)
        else:
            self.q_a_proj = Linear(hidden, latent.query_rank, bias=bias)
            self.q_a_layernorm = Norm(latent.query_rank, config, form, _EPS)
            self.q_b_proj = Linear(latent.query_rank, self.heads * latent.head, bias=False)
        self.kv_a_proj_with_mqa = Linear(hidden, latent.rank + latent.rotated, bias=bias)
        self.kv_a_layernorm = Norm(latent.rank, config, form, _EPS)
        self.kv_b_proj = Linear(latent.rank, self.heads * (latent.plain + latent.value), bias=False)
        self.o_proj = Linear(self.heads * latent.value, hidden, bias=stated(form.out_bias, config))
        self.scaling = latent.head**-0.5 * _stretch(config.rope_parameters) ** 2

    def forward(self, hidden: Tensor, attend: Any, attend_heads: Any = None) -> Tensor:
        sizes = self.latent
        whole = hasattr(self, "q_proj")
        q = self.q_proj(hidden) if whole else self.q_b_proj(self.q_a_layernorm(self.q_a_proj(hidden)))
        each = q.view(*q.shape[:2], self.heads, sizes.head).transpose(1, 2)
        plain, rotated = torch.split(each, [sizes.plain, sizes.rotated], -1)
        latent, shared = torch.split(self.kv_a_proj_with_mqa(hidden), [sizes.rank, sizes.rotated], -1)
        latent = self.kv_a_layernorm(latent)
        heads = LatentHeads(self.kv_b_proj.weight, sizes)
        q, k = torch.cat([rotated, plain], -1), torch.cat([shared, latent], -1).unsqueeze(1)
        if attend_heads is not None:
            made = attend_heads(self.layer_idx, q, k, self.scaling, heads)
        else:
            made = heads.made(attend(self.layer_idx, heads.absorbed(q), k, latent.unsqueeze(1), self.scaling))
        attended: Tensor = self.o_proj(made.transpose(1, 2).flatten(2))
        return attended


def by_head(weight: Tensor, sizes: Latent) -> tuple[Tensor, Tensor]:
    """The rows of `kv_b_proj` that make each head's key `[H, plain, rank]` and value `[H, value, rank]`, views."""
    each = weight.view(-1, sizes.plain + sizes.value, sizes.rank)
    of_keys, of_values = torch.split(each, [sizes.plain, sizes.value], 1)
    return of_keys, of_values


def _stretch(rope: dict[str, Any]) -> float:
    """The factor of queries, and of keys, where positions are stretched (YaRN's `mscale_all_dim`)."""
    scale, by = rope.get("mscale_all_dim"), rope.get("factor") or 1.0
    is_stretched = rope.get("rope_type", "default") != "default" and scale and by > 1
    return 0.1 * scale * math.log(by) + 1.0 if is_stretched and scale else 1.0
