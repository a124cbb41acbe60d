"""The norms of a decoder's modules."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..untrusted.family import Form


class Norm(nn.Module):
    """A root mean square norm, or one around the mean, as `Form.norm` says. `width` None: one without a weight. `eps`
    None: it is what the model's other norms have."""

    def __init__(self, width: int | None, config: Any, form: Form, eps: float | None = None) -> None:
        super().__init__()
        self.weight = None if width is None else nn.Parameter(torch.empty(width))
        self.eps, self.kind = getattr(config, form.norm_eps) if eps is None else eps, form.norm

    def forward(self, x: Tensor) -> Tensor:
        wide = x.float()
        if self.kind == "centred":
            wide = wide - wide.mean(-1, keepdim=True)
        wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.eps)
        if self.weight is None:
            return wide.to(x.dtype)
        if self.kind == "scale":
            return self.weight * wide.to(x.dtype)
        weight = 1.0 + self.weight.float() if self.kind == "offset" else self.weight
        return (weight * wide).to(x.dtype)
