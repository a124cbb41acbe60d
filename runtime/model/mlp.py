"""The MLP of a decoder layer: one, or a mixture of experts of which each token has a few.

Shapes  T tokens, C hidden size, E experts, K of them for each token
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..untrusted.families import FAMILIES
from ..untrusted.family import Form
from .norm import Norm
from .products import Linear

_NEARLY_NOTHING = 1e-20
"""Added to a sum of sigmoids that something is divided by."""


class MLP(nn.Module):
    def __init__(self, config: Any, form: Form, inner: int | None = None, *, bias: bool | None = None) -> None:
        super().__init__()
        hidden, bias = config.hidden_size, stated(form.mlp_bias, config) if bias is None else bias
        inner = dense_width(config) if inner is None else inner
        if form.fuses_mlp:
            self.gate_up_proj = Linear(hidden, 2 * inner, bias=bias)
        else:
            self.gate_proj, self.up_proj = Linear(hidden, inner, bias=bias), Linear(hidden, inner, bias=bias)
        self.down_proj = Linear(inner, hidden, bias=bias)
        act = activation("silu" if form.act is None else getattr(config, form.act))
        if form.fuses_mlp:
            self.activation_fn = act
        else:
            self.act_fn = act

    def forward(self, x: Tensor) -> Tensor:
        if hasattr(self, "gate_up_proj"):
            gate, up = self.gate_up_proj(x).chunk(2, -1)
            inner = self.activation_fn(gate) * up
        else:
            inner = self.gated(self.gate_proj(x), self.up_proj(x))
        out: Tensor = self.down_proj(inner)
        return out

    def gated(self, gate: Tensor, up: Tensor) -> Tensor:
        """What `down_proj` multiplies with."""
        made: Tensor = self.act_fn(gate) * up
        return made


class ClampedMLP(MLP):
    """An expert of `ExpertNames.clamp`."""

    def __init__(self, config: Any, form: Form, mixture: Mixture) -> None:
        super().__init__(config, form, mixture.width, bias=True)
        assert mixture.clamp is not None
        self.limit, self.slope = mixture.clamp

    def gated(self, gate: Tensor, up: Tensor) -> Tensor:
        gate = gate.clamp(max=self.limit)
        return (up.clamp(-self.limit, self.limit) + 1) * (gate * torch.sigmoid(gate * self.slope))


@dataclass(frozen=True, slots=True)
class Mixture:
    """The sizes of a mixture of experts."""

    count: int
    chosen: int
    width: int
    renormalises: bool
    """The shares of the chosen experts are divided by their sum."""
    rounds_shares: bool
    """Shares have the model's dtype."""
    shared: int
    """The width of the expert that every token has besides; 0: there is none."""
    clamp: tuple[float, float] | None
    """The numbers of `ExpertNames.clamp`."""

    @classmethod
    def of(cls, config: Any) -> Mixture | None:
        """That of a model; None if it has no experts."""
        names = FAMILIES[config.model_type].form.experts
        if names is None or not names.are_there(config):
            return None
        count, chosen, width = (int(getattr(config, name)) for name in (names.count, names.chosen, names.width))
        shared = 0 if names.shared is None else int(getattr(config, names.shared))
        if names.shared_count is not None:
            shared = width * int(getattr(config, names.shared_count))
        clamp = None
        if names.clamp is not None:
            limit, slope = (float(getattr(config, name, usual)) for name, usual in names.clamp.items())
            clamp = limit, slope
        return cls(count, chosen, width, stated(names.renormalises, config), names.rounds_shares, shared, clamp)


def dense_width(config: Any) -> int:
    """The width of a model's plain MLP, which LFM2's files state before what becomes of it."""
    width = int(config.intermediate_size)
    if not getattr(config, "block_auto_adjust_ff_dim", False):
        return width
    width, times, unit = int(2 * width / 3), config.block_ffn_dim_multiplier, config.block_multiple_of
    return width if times is None else unit * -(-int(times * width) // unit)


def is_mixture(config: Any, at: int) -> bool:
    """Whether a layer has experts."""
    if Mixture.of(config) is None:
        return False
    kinds = getattr(config, "mlp_layer_types", None)
    if kinds is not None:
        return bool(kinds[at] == "sparse")
    dense, every = getattr(config, "mlp_only_layers", None) or (), getattr(config, "decoder_sparse_step", 1)
    return at not in dense and (at + 1) % every == 0


class Experts(nn.Module):
    """A mixture of experts. A router gives each token K experts and their shares; the sum of what these make of it is
    the result."""

    has_own_norms: ClassVar[bool] = False
    """It takes what the layer adds to, not the norm of that."""
    router: ClassVar[type[Linear]] = Linear

    def __init__(self, config: Any, form: Form) -> None:
        super().__init__()
        mixture = Mixture.of(config)
        assert mixture is not None
        assert form.experts is not None
        self.mixture = mixture
        self.gate = self.router(config.hidden_size, mixture.count, bias=mixture.clamp is not None)
        self.experts = nn.ModuleList(
            MLP(config, form, mixture.width) if mixture.clamp is None else ClampedMLP(config, form, mixture)
            for _ in range(mixture.count)
        )
        self.has_shared = mixture.shared > 0
        if self.has_shared:
            self.shared_expert = MLP(config, form, mixture.shared)
        has_share = self.has_shared and form.experts.shared is not None
        self.shared_expert_gate = Linear(config.hidden_size, 1, bias=False) if has_share else None
        """Of the shared expert's share; None: it has none."""
        self.multiply: Callable[[Linear, Tensor], Tensor] = multiply
        """Multiplies with the weights of an expert, which are never widened, nor all together in memory."""

    def forward(self, x: Tensor) -> Tensor:
        """What they make of `[.., C]`, together with the shared one."""
        out = self.mixed(x, self.gate(x))
        if not self.has_shared:
            return out
        shared: Tensor = self.shared_expert(x)
        return out + (shared if self.shared_expert_gate is None else torch.sigmoid(self.shared_expert_gate(x)) * shared)

    def mixed(self, x: Tensor, logits: Tensor) -> Tensor:
        """What the chosen experts make of `[.., C]`, by the router's logits `[.., E]`."""
        rows = x.reshape(-1, x.shape[-1])
        shares, chosen = self.route(logits.reshape(len(rows), -1))
        out = torch.zeros_like(rows)
        for number in torch.unique(chosen).tolist():
            token, place = torch.where(chosen == number)
            expert, some = self.experts[number], rows[token]
            inner = expert.gated(self.multiply(expert.gate_proj, some), self.multiply(expert.up_proj, some))
            made = self.multiply(expert.down_proj, inner) * shares[token, place, None]
            out.index_add_(0, token, made.to(out.dtype))
        return out.view(x.shape)

    def route(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """Shares `[T, K]` and numbers `[T, K]` of the experts, of the router's logits `[T, E]`."""
        shares, chosen = torch.topk(F.softmax(logits, -1, dtype=torch.float), self.mixture.chosen, -1)
        if self.mixture.renormalises:
            shares = shares / shares.sum(-1, keepdim=True)
        return shares.to(logits.dtype) if self.mixture.rounds_shares else shares, chosen


class ExpertsBesideMLP(Experts):
    """Experts beside a dense MLP, which read the same and have norms of their own, before and behind. What the router
    reads has a norm, a weight, and one over the root of the width; shares have a factor for each expert."""

    has_own_norms = True

    def __init__(self, config: Any, form: Form) -> None:
        super().__init__(config, form)
        self.dense = MLP(config, form)
        self.router_norm = Norm(None, config, form)
        self.router_root = config.hidden_size**-0.5
        self.router_scale = nn.Parameter(torch.empty(config.hidden_size))
        self.per_expert_scale = nn.Parameter(torch.empty(self.mixture.count))
        width = config.hidden_size
        self.before_dense, self.after_dense = Norm(width, config, form), Norm(width, config, form)
        self.before_experts, self.after_experts = Norm(width, config, form), Norm(width, config, form)

    def forward(self, x: Tensor) -> Tensor:
        dense: Tensor = self.after_dense(self.dense(self.before_dense(x)))
        logits = self.gate(self.router_norm(x) * self.router_scale * self.router_root)
        made: Tensor = self.after_experts(self.mixed(self.before_experts(x), logits))
        return dense + made

    def route(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        shares, chosen = super().route(logits)
        return shares * self.per_expert_scale[chosen], chosen


class ChoosingExperts(Experts):
    """Experts whose shares are a softmax over the chosen alone, in the model's dtype."""

    def route(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        best, chosen = torch.topk(logits, self.mixture.chosen, -1)
        return F.softmax(best, -1), chosen


class ExactRouter(Linear):
    """A router whose weights and products are fp32 whatever the model's dtype, and the bias by which it chooses."""

    def __init__(self, width: int, count: int, *, bias: bool) -> None:
        super().__init__(width, count, bias=bias)
        self.e_score_correction_bias = nn.Parameter(torch.empty(count, dtype=torch.float32))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x.float(), self.weight.float())


class SigmoidExperts(Experts):
    """Experts whose shares are each the sigmoid of its logit, times a factor; those are chosen whose sum with a bias
    is highest, in the groups of them that are best."""

    router = ExactRouter

    def __init__(self, config: Any, form: Form) -> None:
        super().__init__(config, form)
        assert form.experts is not None
        groups = form.experts.groups
        self.groups, self.chosen_groups = (1, 1) if groups is None else (int(getattr(config, name)) for name in groups)
        self.share_factor = 1.0 if form.experts.factor is None else float(getattr(config, form.experts.factor))

    def route(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        all_shares = torch.sigmoid(logits.float())
        assert isinstance(self.gate, ExactRouter)
        allowed = self._allowed(all_shares + self.gate.e_score_correction_bias)
        chosen = torch.topk(allowed, self.mixture.chosen, -1)[1]
        shares = all_shares.gather(1, chosen)
        if self.mixture.renormalises:
            shares = shares / (shares.sum(-1, keepdim=True) + _NEARLY_NOTHING)
        shares = shares * self.share_factor
        return shares.to(logits.dtype) if self.mixture.rounds_shares else shares, chosen

    def _allowed(self, scores: Tensor) -> Tensor:
        """Scores `[T, E]`, minus infinity outside the groups whose two best experts have the highest sums."""
        if self.chosen_groups >= self.groups:
            return scores
        groups = scores.view(len(scores), self.groups, -1)
        best = groups.topk(2, -1)[0].sum(-1).topk(self.chosen_groups, -1)[1]
        outside = torch.ones(groups.shape[:2], dtype=torch.bool, device=scores.device).scatter_(1, best, False)
        return groups.masked_fill(outside.unsqueeze(-1), -torch.inf).flatten(1)


def kept_exact(model: nn.Module) -> frozenset[str]:
    """The names of a model's weights that stay fp32 whatever its dtype."""
    routers = [(name, part) for name, part in model.named_modules() if isinstance(part, ExactRouter)]
    return frozenset(f"{name}.{weight}" for name, part in routers for weight in part.state_dict())


_BY_SCORES = {"softmax": Experts, "sigmoid": SigmoidExperts, "chosen": ChoosingExperts}


def mixture_of_experts(config: Any, form: Form) -> Experts:
    """The experts of a layer of such a form."""
    assert form.experts is not None
    if form.experts.are_beside:
        return ExpertsBesideMLP(config, form)
    return _BY_SCORES[form.experts.scores](config, form)


def multiply(layer: Linear, x: Tensor) -> Tensor:
    """The product of a linear layer in the dtype of x, rounded to it before a bias is added."""
    out = F.linear(x, layer.weight.to(x.dtype))
    return out if layer.bias is None else out + layer.bias.to(x.dtype)


def stated(answer: str | bool, config: Any) -> bool:
    """Whether a family, or a file by what is named so in `config.json`, has a bias."""
    return bool(getattr(config, answer)) if isinstance(answer, str) else answer


_ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "silu": nn.SiLU, "swish": nn.SiLU, "gelu": nn.GELU, "relu": nn.ReLU,
    "gelu_pytorch_tanh": lambda: nn.GELU(approximate="tanh"),
}  # fmt: skip
"""The activations that the families' models have. Others are transformers' own, which take long to load."""


def activation(name: str) -> nn.Module:
    if name in _ACTIVATIONS:
        return _ACTIVATIONS[name]()
    from transformers.activations import ACT2FN

    found: nn.Module = ACT2FN[name]
    return found
