"""Latent attention: a token leaves one vector, from which the keys and values of all heads are made.

    hidden -> [latent | rotated part] of the token, hidden -> low rank -> [plain part | rotated part] of each query head

A head's key is its own rows of `kv_b_proj` times the latent, and the rotated part, which all heads share; its value is
other rows of it times the latent. Neither is ever made: the query's plain part is multiplied with the key's rows, and
what attention gives with the value's (docs/decisions/0046). So there is one KV head, whose keys are

    [rotated part | latent]

and whose values are the latents, the last numbers of the keys.

Shapes  B sequences, T tokens, C hidden size, H query heads
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
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

    def forward(self, hidden: Tensor, attend: Any) -> Tensor:
        sizes = self.latent
        whole = hasattr(self, "q_proj")
        q = self.q_proj(hidden) if whole else self.q_b_proj(self.q_a_layernorm(self.q_a_proj(hidden)))
        each = q.view(*q.shape[:2], self.heads, sizes.head).transpose(1, 2)
        plain, rotated = torch.split(each, [sizes.plain, sizes.rotated], -1)
        latent, shared = torch.split(self.kv_a_proj_with_mqa(hidden), [sizes.rank, sizes.rotated], -1)
        latent = self.kv_a_layernorm(latent)
        of_keys, of_values = by_head(self.kv_b_proj.weight, sizes)
        q = torch.cat([rotated, plain @ of_keys], -1)
        k = torch.cat([shared, latent], -1)
        out = attend(self.layer_idx, q, k.unsqueeze(1), latent.unsqueeze(1), self.scaling)
        made = (out @ of_values.transpose(1, 2)).transpose(1, 2).flatten(2)
        attended: Tensor = self.o_proj(made)
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
