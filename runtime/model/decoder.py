"""The decoder layers of our families as plain modules: what prefill runs and what `lean_layer` takes its weights from.

They are transformers' own layers without what is around them. Importing a model of transformers imports its loading,
distributed training and compiling, which takes twice as long as torch itself; here a process that answers one question
needs none of it. Every operation is transformers', in its order, so that results are its own to the bit
(`tests/runtime/model/test_decoder.py`); names of parts and weights are its as well. Positions are `rotary`'s.

Shapes  B sequences, T tokens, C hidden size, H query heads, G KV heads, D head dim
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..untrusted.families import FAMILIES
from ..untrusted.family import Form
from .delta_net import DeltaNet
from .head_shapes import head_shape
from .latent import LatentAttention
from .layer_inputs import LayerTables
from .mlp import MLP, activation, dense_width, is_mixture, mixture_of_experts, stated
from .norm import Norm
from .products import Linear
from .sharing import doubles_mlp, num_writing
from .short_conv import ShortConv

if TYPE_CHECKING:
    from .packing import Packing

_MIXERS: dict[str, tuple[str, Any]] = {
    "conv": ("conv", ShortConv),
    "delta": ("linear_attn", partial(DeltaNet, by_key_head=False)),
    "delta_by_key_head": ("linear_attn", partial(DeltaNet, by_key_head=True)),
}
"""`Form.mixer` -> the name of what mixes tokens in a recurrent layer, and how it is made."""


class Decoder(nn.Module):
    """A model of one of our families, weights still to come (`weights.fill`). `config` is transformers' or like it."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.config = config
        self.generation_config: Any = None
        self.packing: Packing | None = None
        """How the weights of its layers are rounded; None: they are not."""
        with torch.device("meta"):
            self.model = _Inner(config)
            self.lm_head = Linear(config.hidden_size, config.vocab_size, bias=False)
        self.requires_grad_(False)


def without_memory(config: Any) -> Decoder:
    """The decoder of a configuration, to be asked for its sizes; a head that shares the embedding's weights does."""
    decoder = Decoder(config)
    if config.tie_word_embeddings:
        decoder.lm_head.weight = decoder.model.embed_tokens.weight
    return decoder


class _Inner(nn.Module):
    def __init__(self, config: Any) -> None:
        super().__init__()
        form = FAMILIES[config.model_type].form
        embedding = ScaledEmbedding if form.scales_embedding else Embedding
        self.embed_tokens = embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(DecoderLayer(config, form, at) for at in range(config.num_hidden_layers))
        self.norm = Norm(config.hidden_size, config, form)
        if width := inputs_width(config):
            assert form.layer_vocabulary is not None
            self.inputs = LayerTables(config, form, getattr(config, form.layer_vocabulary), width)


class Embedding(nn.Embedding):
    """An embedding whose numbers are still to come, as `Linear`."""

    def reset_parameters(self) -> None:
        pass


class ScaledEmbedding(Embedding):
    """An embedding whose rows are multiplied by the root of their width."""

    def forward(self, ids: Tensor) -> Tensor:
        scale = torch.tensor(self.embedding_dim**0.5, dtype=self.weight.dtype, device=self.weight.device)
        return super().forward(ids) * scale


class Attention(nn.Module):
    def __init__(self, config: Any, form: Form, at: int) -> None:
        super().__init__()
        hidden, (heads, kv_heads, self.dim) = config.hidden_size, head_shape(config, at)
        self.layer_idx = at
        self.scaling = score_scale(config, form, self.dim)
        self.rows = [heads * self.dim, kv_heads * self.dim, kv_heads * self.dim]
        self.keys_are_values, self.shares = keys_are_values(config, at), at >= num_writing(config)
        bias = stated(form.qkv_bias, config)
        self.is_gated = form.gates_attention
        if form.fuses_qkv:
            self.qkv_proj = Linear(hidden, sum(self.rows), bias=bias)
        else:
            rows = [2 * self.rows[0] if self.is_gated else self.rows[0], *self.rows[1:]]
            self.q_proj = Linear(hidden, rows[0], bias=bias)
            if not self.shares:
                self.k_proj = Linear(hidden, rows[1], bias=bias)
            if not self.shares and not self.keys_are_values:
                self.v_proj = Linear(hidden, rows[2], bias=bias)
        self.o_proj = Linear(self.rows[0], hidden, bias=stated(form.out_bias, config))
        self.head_norm = form.head_norm
        if form.head_norm:
            widths = self.rows[:2] if form.head_norm == "all" else [self.dim, self.dim]
            self.q_norm = Norm(widths[0], config, form)
            if not self.shares:
                self.k_norm = Norm(widths[1], config, form)
        if form.norms_values and not self.shares:
            self.v_norm = Norm(None, config, form)
        if form.has_sinks:  # whoever attends has them from here (`Model.sinks`)
            self.sinks = nn.Parameter(torch.empty(heads))

    def forward(self, hidden: Tensor, attend: Any) -> Tensor:
        if hasattr(self, "qkv_proj"):
            q, k, v = torch.split(self.qkv_proj(hidden), self.rows, -1)
        elif self.shares:
            q = self.q_proj(hidden)
            k = v = q.new_empty(*hidden.shape[:-1], 0)
        else:
            q, k = self.q_proj(hidden), self.k_proj(hidden)
            v = k if self.keys_are_values else self.v_proj(hidden)
        gate: Tensor | None = None
        if self.is_gated:  # of each head the query, then the gate
            both = q.view(*q.shape[:-1], -1, 2 * self.dim).chunk(2, -1)
            q, gate = (part.flatten(-2) for part in both)
        if self.head_norm == "all":
            q, k = self.q_norm(q), self.k_norm(k)
        q, k, v = (part.view(*part.shape[:-1], part.shape[-1] // self.dim, self.dim) for part in (q, k, v))
        if self.head_norm == "head":
            q, k = self.q_norm(q), k if self.shares else self.k_norm(k)
        if hasattr(self, "v_norm"):
            v = self.v_norm(v)
        out = attend(self.layer_idx, q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), self.scaling)
        out = out.transpose(1, 2).reshape(*hidden.shape[:-1], -1)
        attended: Tensor = self.o_proj(out if gate is None else out * torch.sigmoid(gate))
        return attended


class DecoderLayer(nn.Module):
    def __init__(self, config: Any, form: Form, at: int) -> None:
        super().__init__()
        self.family: str = config.model_type
        self.is_parallel, self.is_latent = form.is_parallel, form.is_latent
        self.factor = factor(config, form.residual_factor)
        self.in_pairs = stated(form.in_pairs, config)
        self._mixer: str | None = None
        if is_recurrent(config, at):
            assert form.mixer is not None
            self._mixer, make = _MIXERS[form.mixer]
            setattr(self, self._mixer, make(config, at))
        else:
            self.self_attn = (LatentAttention if form.is_latent else Attention)(config, form, at)
        self.mlp: nn.Module
        if is_mixture(config, at):
            self.mlp = mixture_of_experts(config, form)
        else:
            self.mlp = MLP(config, form, dense_width(config) * (2 if doubles_mlp(config, at) else 1))
        has_own_norms = getattr(self.mlp, "has_own_norms", False)
        self._norms = form.norms._replace(before_mlp=None) if has_own_norms else form.norms
        for name in self._norms:
            if name is not None:
                setattr(self, f"{name}_layernorm", Norm(config.hidden_size, config, form))
        if width := inputs_width(config):
            self.input_gate = Linear(config.hidden_size, width, bias=False)
            self.input_projection = Linear(width, config.hidden_size, bias=False)
            self.after_input_layernorm = Norm(config.hidden_size, config, form)
            self.act_fn = activation("silu" if form.act is None else getattr(config, form.act))
        if form.has_layer_scalar:
            self.layer_scalar = nn.Parameter(torch.empty(1))

    @property
    def mixer(self) -> Any:
        """What mixes tokens in a recurrent layer; None in one that attends."""
        return None if self._mixer is None else getattr(self, self._mixer)

    @property
    def state_shapes(self) -> dict[str, tuple[int, ...]] | None:
        """The shapes of a recurrent layer's state, by name; None in a layer that attends."""
        return None if self._mixer is None else dict(self.mixer.shapes)

    def forward(
        self,
        hidden: Tensor,
        *,
        strata_attend: Any,
        strata_mix: Any = None,
        strata_attend_heads: Any = None,
        per_layer_input: Tensor | None = None,
        **_: Any,
    ) -> Tensor:
        """Run the layer on `[B, T, C]`, and on what it reads besides. The other arguments are those that transformers'
        layers take."""
        norms = self._norms
        normed = self._normed(norms.before_attention, hidden)
        if self._mixer is not None:
            out = self.mixer(normed, strata_mix)
        elif self.is_latent:
            out = self.self_attn(normed, strata_attend, strata_attend_heads)
        else:
            out = self.self_attn(normed, strata_attend)
        if self.is_parallel:
            parallel: Tensor = hidden + out + self.mlp(normed)
            return parallel
        hidden = hidden + self._scaled(self._normed(norms.after_attention, out))
        made = self.mlp(self._normed(norms.before_mlp, hidden))
        hidden = hidden + self._scaled(self._normed(norms.after_mlp, made))
        if per_layer_input is not None:
            gated = self.act_fn(self.input_gate(hidden)) * per_layer_input
            hidden = hidden + self.after_input_layernorm(self.input_projection(gated))
        return hidden * self.layer_scalar if hasattr(self, "layer_scalar") else hidden

    def _scaled(self, x: Tensor) -> Tensor:
        return x if self.factor == 1 else x * self.factor

    def _normed(self, name: str | None, x: Tensor) -> Tensor:
        found: Tensor = x if name is None else getattr(self, f"{name}_layernorm")(x)
        return found


def apply_rotary_pos_emb(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    """Rotate q `[B,H,T,D]` and k `[B,G,T,D]` by tables `[B,T,rotary dim]`; channels beyond the tables stay as they
    are."""
    return _rotated(q, cos.unsqueeze(1), sin.unsqueeze(1)), _rotated(k, cos.unsqueeze(1), sin.unsqueeze(1))


def _rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    width = cos.shape[-1]
    turned, rest = x[..., :width], x[..., width:]
    left, right = turned[..., : width // 2], turned[..., width // 2 :]
    out = (turned * cos) + (torch.cat((-right, left), -1) * sin)
    return (torch.cat([out, rest], -1) if rest.shape[-1] else out).to(x.dtype)


def factor(config: Any, name: str | None) -> float:
    """A number of `config.json` by which something is multiplied; 1 where a family has no `name` for it."""
    return 1.0 if name is None else float(getattr(config, name))


def score_scale(config: Any, form: Form, dim: int) -> float:
    """What the scores of heads of a width are multiplied by."""
    if isinstance(form.score_scale, float):
        return form.score_scale
    if form.score_scale is not None:
        return float(getattr(config, form.score_scale))
    width: int = getattr(config, form.score_width) if form.score_width else dim
    return float(width**-0.5)


def inputs_width(config: Any) -> int:
    """How many numbers each layer reads of a token besides the hidden state."""
    name = FAMILIES[config.model_type].form.layer_inputs
    return 0 if name is None else int(getattr(config, name))


def keys_are_values(config: Any, at: int) -> bool:
    """Whether a layer has no product for v."""
    name = FAMILIES[config.model_type].form.keys_are_values
    return name is not None and bool(getattr(config, name)) and config.layer_types[at] == "full_attention"


def is_recurrent(config: Any, at: int) -> bool:
    """Whether a layer keeps a state in place of keys and values."""
    has_mixer = FAMILIES[config.model_type].form.mixer is not None
    return has_mixer and bool(config.layer_types[at] != "full_attention")


def rotates(config: Any, at: int) -> bool:
    """Whether a layer's queries and keys are rotated."""
    form = FAMILIES[config.model_type].form
    if form.rotated_layers is not None:
        return bool(getattr(config, form.rotated_layers)[at])
    if form.rotates_in_windows and config.sliding_window is not None:
        return bool(config.layer_types[at] == "sliding_attention")
    return True
