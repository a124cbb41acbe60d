"""A decoder layer for decode: a module's weights, in as few operations as they need.

A decode step is bound by the bytes of the weights and, in a small model, by the number of operations. The modules
(`decoder`'s, or transformers' own) are written for any shape; this is one for a single new token of each sequence, as
two pure functions of static shapes with attention between them:

    before(hidden, cos, sin) -> q, k, v      norm, one product for q, k and v, their norms, rotation
    after(hidden, attended) -> hidden        output product, norms, one product for gate and up, down product

Weights that are multiplied with the same vector lie together; the module's own parameters become views of them,
so nothing is held twice. A layer that is not known to its last part has no such form (`lean_forms`): its module serves
that one.

Shapes  B sequences, C hidden size, H query heads, G KV heads, D head dim
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..untrusted.family import Form
from .expert_weights import LayerExperts, Make
from .latent import Latent, by_head
from .layer_inputs import LayerTables
from .mlp import MLP, Experts, ExpertsBesideMLP
from .products import Product


class Norm:
    """Root mean square norm over the last dimension, or one around the mean, computed as by the family's own module."""

    def __init__(self, module: Any, weight: Tensor | None = None) -> None:
        """`weight`: in place of the module's."""
        name, kind = type(module).__name__, getattr(module, "kind", None)
        self.eps = float(module.eps if hasattr(module, "eps") else module.variance_epsilon)
        self.is_offset = kind == "offset" or name.startswith("Gemma3")
        self.is_centred = kind == "centred" or name.endswith("LayerNorm")
        own = module.weight if weight is None else weight
        self.weight: Tensor = 1.0 + own.float() if self.is_offset else own

    def __call__(self, x: Tensor) -> Tensor:
        if self.is_centred:
            return F.layer_norm(x.float(), self.weight.shape, self.weight.float(), eps=self.eps).to(x.dtype)
        if self.weight.dtype is torch.float32:  # 16 bits are too coarse for it: it is near one, or a product
            return F.rms_norm(x.float(), self.weight.shape, self.weight, self.eps).to(x.dtype)
        return F.rms_norm(x, self.weight.shape, self.weight, self.eps)


class HeadNorm:
    """`Norm` of each head `[B, N, D]`: first the queries', then the keys', if there are any."""

    def __init__(self, *each: tuple[Any, int]) -> None:
        """`each`: modules, and of how many heads."""
        norms = [(Norm(module), count) for module, count in each]
        self.eps, self.is_offset = norms[0][0].eps, norms[0][0].is_offset
        self.weight = torch.cat([norm.weight.expand(count, -1) for norm, count in norms])

    def __call__(self, x: Tensor) -> Tensor:
        normed = F.rms_norm(x.float() if self.is_offset else x, x.shape[-1:], None, self.eps)
        return (normed * self.weight).to(x.dtype)


class _Beside:
    """The norms of experts beside a dense MLP."""

    def __init__(self, experts: ExpertsBesideMLP) -> None:
        self.router = Norm(experts.router_norm, experts.router_scale.float() * experts.router_root)
        self.before_dense, self.after_dense = Norm(experts.before_dense), Norm(experts.after_dense)
        self.before_experts, self.after_experts = Norm(experts.before_experts), Norm(experts.after_experts)


class _Inputs:
    """What a layer does with the numbers that it reads of a token besides."""

    def __init__(self, layer: Any, product: Make) -> None:
        self.gate, self.projection = product([layer.input_gate]), product([layer.input_projection])
        self.after = Norm(layer.after_input_layernorm)


class LeanInputs:
    """The weights for it that a model's layers have in common."""

    def __init__(self, tables: LayerTables, product: Make) -> None:
        self.width, self.root, self.factor = tables.width, tables.root, tables.factor
        self.projection, self.norm = product([tables.projection]), Norm(tables.norm)


class LeanLayer:
    """A decoder layer in the lean form described above. `layer` is a module that `lean_forms` knows; it goes on
    working."""

    has_halves: ClassVar[bool] = True
    """It has `before` and `after`; otherwise it is for compiled steps alone."""
    is_gated: bool = False
    """Behind each head of q, `qkv` makes a gate of what attention gives."""
    shares: bool = False
    """It attends to keys and values of another layer: `qkv` makes queries alone."""

    def __init__(
        self, layer: Any, form: Form, heads: int, kv_heads: int, dim: int, *, is_rotated: bool, product: Make
    ) -> None:
        mlp = layer.mlp
        self.is_parallel = form.is_parallel
        self.in_pairs = bool(getattr(layer, "in_pairs", form.in_pairs)) and is_rotated
        self.factor = float(getattr(layer, "factor", getattr(layer, "residual_multiplier", 1.0)))
        """Of what is added to the hidden state."""
        self.heads, self.kv_heads, self.dim, self.is_rotated = heads, kv_heads, dim, is_rotated
        self._take(layer, form, product)
        self.inputs = _Inputs(layer, product) if hasattr(layer, "input_gate") else None
        self.experts: Experts | None = mlp if isinstance(mlp, Experts) else None
        """In place of `gate_up` and `down`, or besides them: those are the shared expert's then, or the dense MLP's."""
        self.beside = _Beside(mlp) if isinstance(mlp, ExpertsBesideMLP) else None
        self.shared_gate: Product | None = None
        """Of the shared expert's share; None: it has none."""
        self.scalar: Tensor | None = layer.layer_scalar if form.has_layer_scalar else None
        """`[1]`, by which all that the layer leaves is multiplied."""
        if self.experts is not None:
            first = self.experts.experts[0]
            assert isinstance(first, MLP)
            self.act, self.router = first.act_fn, product([self.experts.gate])
        self.has_mlp = self.experts is None or self.experts.has_shared or self.beside is not None
        if self.experts is not None and self.experts.has_shared:
            mlp = self.experts.shared_expert
            if self.experts.shared_expert_gate is not None:
                self.shared_gate = product([self.experts.shared_expert_gate])
        elif isinstance(mlp, ExpertsBesideMLP):
            mlp = mlp.dense
        if self.has_mlp:
            self.gate_up = product([mlp.gate_up_proj] if form.fuses_mlp else [mlp.gate_proj, mlp.up_proj])
            self.act, self.down = mlp.activation_fn if form.fuses_mlp else mlp.act_fn, product([mlp.down_proj])
        self.act_name = act_name(self.act)
        self.layer_experts = None if self.experts is None else LayerExperts.of(self.experts, self.router, product)
        """The experts for compiled steps; None where there are none, or such steps do not know their weights."""
        of_form = form.norms if self.beside is None else form.norms._replace(before_mlp=None)
        norms = [None if name is None else Norm(getattr(layer, f"{name}_layernorm")) for name in of_form]
        self.before_attention, self.after_attention, self.before_mlp, self.after_mlp = norms

    def _take(self, layer: Any, form: Form, product: Make) -> None:
        """The parts of attention."""
        attention = layer.self_attn
        self.scale, self.out = float(attention.scaling), product([attention.o_proj])
        self.is_gated, self.shares = form.gates_attention, bool(getattr(attention, "shares", False))
        of_qkv = ("qkv_proj",) if form.fuses_qkv else ("q_proj", "k_proj", "v_proj")
        parts = [getattr(attention, name, None) for name in of_qkv]
        self.qkv = product([part for part in parts if part is not None])
        has_values = self.shares or getattr(attention, "v_proj", None) is not None
        self.keys_are_values = form.keys_are_values is not None and not has_values
        """v is k before its norm: `qkv` has no rows for it."""
        self.value_eps = float(attention.v_norm.eps) if form.norms_values and not self.shares else None
        """Of the norm of each head of v, which has no weight; None: it is not normed."""
        self.sinks: Tensor | None = attention.sinks if form.has_sinks else None
        """`[H]`, of which whoever attends knows."""
        self.head_norm: HeadNorm | None = None
        self.wide_norms: tuple[Norm, Norm] | None = None
        if form.head_norm == "head":
            of_keys = () if self.shares else ((attention.k_norm, self.kv_heads),)
            self.head_norm = HeadNorm((attention.q_norm, self.heads), *of_keys)
        elif form.head_norm == "all":
            self.wide_norms = Norm(attention.q_norm), Norm(attention.k_norm)

    def before(self, hidden: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Compute q `[B, H, D]` and k `[B, G, D]`, both rotated, and v `[B, G, D]` from `hidden` `[B, C]`, with tables
        of `for_lean` `[B, 1, D]`. k and v have no heads where the layer shares another one's."""
        normed = hidden if self.before_attention is None else self.before_attention(hidden)
        qkv = self.qkv(normed)
        own = 0 if self.shares else self.kv_heads
        both, heads = self.heads + own, self.heads
        if self.wide_norms is not None:
            q, k, v = torch.split(qkv, [heads * self.dim, self.kv_heads * self.dim, self.kv_heads * self.dim], -1)
            qkv = torch.cat([self.wide_norms[0](q), self.wide_norms[1](k), v], -1)
        each = qkv.view(len(hidden), -1, self.dim)
        if self.is_gated:
            each = torch.cat([each[:, : 2 * heads : 2], each[:, 2 * heads :]], 1)
        qk, v = each[:, :both], each[:, each.shape[1] - own :]
        if self.value_eps is not None:
            v = F.rms_norm(v, v.shape[-1:], None, self.value_eps)
        if self.head_norm is not None:
            qk = self.head_norm(qk)
        if self.in_pairs:
            qk = in_halves(qk, sin.shape[-1])
        if self.is_rotated:
            qk = turn(qk, cos, sin)
        return qk[:, :heads], qk[:, heads:], v

    def after(self, hidden: Tensor, attended: Tensor, more: Tensor | None = None) -> Tensor:
        """Compute the layer's output `[B, C]` from its input `[B, C]`, from the result of attention `[B, H, D]`, and
        from what it reads besides, `[B, P]`."""
        out = self.out(attended.reshape(hidden.shape[0], -1))
        if self.is_parallel:
            assert self.before_attention is not None
            return hidden + out + self._mlp(self.before_attention(hidden))
        hidden = hidden + self._scaled(out if self.after_attention is None else self.after_attention(out))
        down = self._mlp(hidden if self.before_mlp is None else self.before_mlp(hidden))
        out = hidden + self._scaled(down if self.after_mlp is None else self.after_mlp(down))
        if self.inputs is not None and more is not None:
            made = self.inputs.projection(self.act(self.inputs.gate(out)).mul_(more))
            out = out + self.inputs.after(made)
        return out if self.scalar is None else out * self.scalar

    @property
    def products(self) -> list[Product]:
        """All of its products but those of experts."""
        of_mlp = [self.gate_up, self.down] if self.has_mlp else []
        of_experts = [] if self.experts is None else [self.router]
        of_shared = [] if self.shared_gate is None else [self.shared_gate]
        of_inputs = [] if self.inputs is None else [self.inputs.gate, self.inputs.projection]
        return [self.qkv, self.out, *of_mlp, *of_experts, *of_shared, *of_inputs]

    @property
    def can_compile(self) -> bool:
        """A compiled step knows all of its parts."""
        return bool(self.act_name) and (self.experts is None or self.layer_experts is not None)

    def _mlp(self, x: Tensor) -> Tensor:
        if self.experts is None:
            return self._dense(x)
        if self.beside is not None:
            mixed = self.experts.mixed(self.beside.before_experts(x), self.router(self.beside.router(x)))
            dense = self._dense(self.beside.before_dense(x))
            return self.beside.after_dense(dense) + self.beside.after_experts(mixed)
        mixed = self.experts.mixed(x, self.router(x.to(self.router.dtype)))  # some are fp32 in every dtype
        if not self.has_mlp:
            return mixed
        shared = self._dense(x)
        return mixed + (shared if self.shared_gate is None else torch.sigmoid(self.shared_gate(x)) * shared)

    def _dense(self, normed: Tensor) -> Tensor:
        gate, up = self.gate_up(normed).chunk(2, -1)
        return self.down(self.act(gate).mul_(up))

    def _scaled(self, x: Tensor) -> Tensor:
        return x if self.factor == 1 else x * self.factor


class LeanLatent(LeanLayer):
    """The lean form of a layer with latent attention (`latent`): q `[B, H, D]`, k `[B, 1, D]`, v `[B, 1, rank]`."""

    def _take(self, layer: Any, form: Form, product: Make) -> None:
        attention = layer.self_attn
        self.scale, self.out = float(attention.scaling), product([attention.o_proj])
        self.latent: Latent = attention.latent
        of_q = attention.q_proj if self.latent.query_rank is None else attention.q_a_proj
        self.qkv = product([of_q, attention.kv_a_proj_with_mqa])
        self.of_latent = Norm(attention.kv_a_layernorm)
        self.of_query: tuple[Norm, Product] | None = None
        if self.latent.query_rank is not None:
            self.of_query = Norm(attention.q_a_layernorm), product([attention.q_b_proj])
        self.of_keys, self.of_values = by_head(attention.kv_b_proj.weight, self.latent)

    def before(self, hidden: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        normed, sizes = hidden if self.before_attention is None else self.before_attention(hidden), self.latent
        both = self.qkv(normed)
        before = both.shape[-1] - sizes.rank - sizes.rotated
        q, latent, shared = torch.split(both, [before, sizes.rank, sizes.rotated], -1)
        if self.of_query is not None:
            norm, product = self.of_query
            q = product(norm(q))
        latent = self.of_latent(latent).unsqueeze(1)
        each = q.view(-1, self.heads, sizes.head)
        plain, rotated = torch.split(each, [sizes.plain, sizes.rotated], -1)
        turned = torch.cat([rotated, shared.unsqueeze(1)], 1)
        if self.in_pairs:
            turned = in_halves(turned, sizes.rotated)
        turned = turn(turned, cos[..., : sizes.rotated], sin)
        absorbed = torch.bmm(plain.transpose(0, 1), self.of_keys).transpose(0, 1)
        q = torch.cat([turned[:, : self.heads], absorbed], -1)
        return q, torch.cat([turned[:, self.heads :], latent], -1), latent

    def after(self, hidden: Tensor, attended: Tensor, more: Tensor | None = None) -> Tensor:
        made = torch.bmm(attended.transpose(0, 1), self.of_values.transpose(1, 2)).transpose(0, 1)
        return super().after(hidden, made, more)

    @property
    def can_compile(self) -> bool:
        return False


class LeanGated(LeanLayer):
    """The lean form of a layer whose attention has gates, which only compiled steps multiply by."""

    has_halves = False


def fused(of: type[Product]) -> Make:
    """The products of a class, with weights that lie together."""
    return lambda layers: of(*_fuse(layers))


def act_name(act: nn.Module) -> str:
    """The name of an activation that compiled steps know; "" for another one."""
    if isinstance(act, nn.SiLU) or type(act).__name__ == "SiLUActivation":
        return "silu"
    is_tanh = getattr(act, "approximate", None) == "tanh" or type(act).__name__ == "GELUTanh"
    return "gelu_tanh" if is_tanh else ""


def for_lean(cos: Tensor, sin: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """A family's half-split tables `[B, 1, rotary dim]` as `turn` takes them: the cosine `[B, 1, D]`, one beyond the
    rotary dim, and the sine with the sign of its half."""
    half, rest = cos.shape[-1] // 2, dim - cos.shape[-1]
    signed = torch.cat([-sin[..., :half], sin[..., half:]], -1)
    return (F.pad(cos, (0, rest), value=1.0) if rest else cos), signed


def in_halves(x: Tensor, width: int) -> Tensor:
    """Heads `[..., D]` of whose first `width` numbers (2i, 2i + 1) belong together, as heads of whose first ones
    (i, i + width / 2) do."""
    halves, rest = [x[..., :width:2], x[..., 1:width:2]], x[..., width:]
    return torch.cat([*halves, rest] if rest.shape[-1] else halves, -1)


def turn(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate `[B, N, D]` by tables of `for_lean`, which OLMo 2 has in fp32."""
    width = sin.shape[-1]
    half = width // 2
    out = x * cos
    out[..., :half].addcmul_(x[..., half:width], sin[..., :half])
    out[..., half:width].addcmul_(x[..., :half], sin[..., half:])
    return out.to(x.dtype)


def _fuse(layers: list[Any]) -> tuple[Tensor, Tensor | None]:
    """Join weight and bias of linear layers over the same input. The weights of several, which other models may have as
    well, become views of the joined one."""
    if len(layers) == 1:
        return layers[0].weight, layers[0].bias
    weight = torch.cat([layer.weight.detach() for layer in layers])
    rows = [layer.weight.shape[0] for layer in layers]
    for layer, part in zip(layers, torch.split(weight, rows), strict=True):
        layer.weight.data = part
    if all(layer.bias is None for layer in layers):
        return weight, None
    biases = [weight.new_zeros(n) if layer.bias is None else layer.bias for layer, n in zip(layers, rows, strict=True)]
    return weight, torch.cat([bias.detach() for bias in biases])
