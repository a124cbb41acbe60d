"""Which lean form a decoder layer has (`lean_layer`, `lean_recurrent`), if it is known to its last part.

A part too many would be left out, so a layer that has other parts than its family's is served by its module.
"""

from __future__ import annotations

from torch import nn

from ..untrusted.families import FAMILIES
from ..untrusted.family import Form
from .expert_weights import Make
from .lean_layer import LeanGated, LeanLatent, LeanLayer, fused
from .lean_recurrent import LeanRecurrent
from .mlp import Experts
from .packed import PackedLinear
from .products import Linear, Product

_DROPOUTS = frozenset({"resid_attn_dropout", "resid_mlp_dropout"})
_INPUTS = frozenset({"input_gate", "input_projection", "after_input_layernorm", "act_fn"})


def lean_layer(
    layer: nn.Module, heads: int, kv_heads: int, dim: int, *, is_rotated: bool, product: Make | None = None,
    halves_only: bool = False,
) -> LeanLayer | None:  # fmt: skip
    """Make the lean form of `layer`; None unless every part of it is one that its family has. `halves_only`: nor where
    the form is for compiled steps alone."""
    form = _form(layer)
    if form is None or (halves_only and (form.gates_attention or getattr(layer, "mixer", None) is not None)):
        return None
    if getattr(layer, "mixer", None) is not None:
        return LeanRecurrent(layer, form, heads, kv_heads, dim, is_rotated=False, product=product or fused(Product))
    attention, mlp = getattr(layer, "self_attn", None), getattr(layer, "mlp", None)
    if attention is None or mlp is None:
        return None
    parts = dict(layer.named_children()), dict(attention.named_children()), dict(mlp.named_children())
    norms = frozenset(parts[0]) - {"self_attn", "mlp"} - _DROPOUTS
    if norms.issuperset(_INPUTS):
        norms -= _INPUTS
    if (norms, frozenset(parts[1]), frozenset(parts[2])) != _parts_of(form, type(mlp), frozenset(parts[1])):
        return None
    products = [part for some in parts for name, part in some.items() if name.endswith("_proj")]
    if not all(isinstance(part, PackedLinear) or _is_plain(part) for part in products):
        return None
    lean = LeanLatent if form.is_latent else LeanGated if form.gates_attention else LeanLayer
    return lean(layer, form, heads, kv_heads, dim, is_rotated=is_rotated, product=product or fused(Product))


def _is_plain(part: nn.Module) -> bool:
    """True for a linear layer whose weight holds plain numbers: other classes keep quantised ones."""
    return isinstance(part, nn.Linear) and type(part) in (nn.Linear, Linear) and part.weight.is_floating_point()


def _form(layer: nn.Module) -> Form | None:
    """The form of the family of a layer, ours (`decoder`) or transformers'; None if it is neither."""
    package = type(layer).__module__
    if package == f"{__package__}.decoder":
        name = str(getattr(layer, "family", ""))
    else:
        name = type(layer).__name__.removesuffix("DecoderLayer").removesuffix("Text").lower()
        name = name if package.startswith("transformers.") else ""
    family = FAMILIES.get(name) or FAMILIES.get(f"{name}_text")
    return None if family is None else family.form


def _parts_of(
    form: Form, kind: type[nn.Module], there: frozenset[str]
) -> tuple[frozenset[str], frozenset[str], frozenset[str]]:
    """Norms of a decoder layer of that form, parts of its attention, and of its MLP, which is of that kind. `there`:
    the parts that a layer's attention has, of which some are had by some layers of a form only."""
    norms = form.norms
    attention, mlp = {"q_proj", "k_proj", "v_proj", "o_proj"}, {"gate_proj", "up_proj", "down_proj", "act_fn"}
    if form.fuses_qkv:
        attention = {"qkv_proj", "o_proj"}
    if form.is_latent:
        of_q = {"q_proj"} if "q_proj" in there else {"q_a_proj", "q_a_layernorm", "q_b_proj"}
        attention = of_q | {"kv_a_proj_with_mqa", "kv_a_layernorm", "kv_b_proj", "o_proj"}
    if form.fuses_mlp:
        mlp = {"gate_up_proj", "down_proj", "activation_fn"}
    if issubclass(kind, Experts):
        assert form.experts is not None
        mlp = {"gate", "experts"} | ({"shared_expert", "shared_expert_gate"} if form.experts.shared else set())
        mlp |= {"shared_expert"} if form.experts.shared_count else set()
        if form.experts.are_beside:
            mlp |= {"dense", "router_norm", "before_dense", "after_dense", "before_experts", "after_experts"}
            norms = norms._replace(before_mlp=None)
    if form.head_norm:
        attention |= {"q_norm", "k_norm"}
    if form.norms_values:
        attention.add("v_norm")
    if form.keys_are_values is not None and "v_proj" not in there:
        attention.remove("v_proj")
    if form.sharing_layers is not None and "k_proj" not in there:
        attention -= {"k_proj", "k_norm", "v_norm"}
    return norms.names, frozenset(attention), frozenset(mlp)
