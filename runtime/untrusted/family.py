"""The fields of an entry in the table of families (`families`). One that is left out is as in Llama."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

EVERY_LAYER = "every_layer"
"""The one rotary table of a family whose layers are all turned alike."""
ROPE_KINDS = ("default", "linear", "dynamic", "yarn", "llama3", "longrope")
USUAL_THETA = 10_000.0


@dataclass(frozen=True, kw_only=True, slots=True)
class ExpertNames:
    """The names in `config.json` of a mixture's sizes."""

    count: str = "num_experts"
    chosen: str = "num_experts_per_tok"
    width: str = "moe_intermediate_size"
    renormalises: str | bool = "norm_topk_prob"
    """Whether the shares of the chosen experts are divided by their sum, or the name of that."""
    shared: str | None = None
    """The width of an MLP that every token has besides, times a share of its own."""
    shared_count: str | None = None
    """In place of that: such an MLP is as wide as so many experts, and has no share."""
    scores: str = "softmax"
    """`softmax`: shares are a softmax over all experts. `sigmoid`: each is the sigmoid of its logit, in fp32 with the
    router; those are chosen whose sum with a bias of the expert's own is highest. `chosen`: a softmax over the chosen
    alone, in the model's dtype."""
    groups: tuple[str, str] | None = None
    """The number of groups that experts stand in, and of those that a token's may come from."""
    factor: str | None = None
    """What shares are multiplied by."""
    rounds_shares: bool = True
    """Shares have the model's dtype."""
    clamp: Mapping[str, float] | None = None
    """Names of c and a, and what they are where a file is silent: of its gate g and up u an expert makes (1 + u within
    c) * x * sigmoid(a * x), with x = min(g, c). The router and all products of such experts have biases, and tensors
    that have those of all together stand [E, columns, rows], rows of gate at even places and of up at odd ones."""
    switch: str | None = None
    """Name in `config.json` of whether there are any; None: there are."""
    are_beside: bool = False
    """They stand beside a dense MLP: each has norms of its own, before and behind, and their sum is the result. What
    the router reads has a norm of its own, too, and shares of experts a factor each."""

    def are_there(self, config: object) -> bool:
        """Whether a model of such a configuration has any."""
        return self.switch is None or bool(getattr(config, self.switch))


class Norms(NamedTuple):
    """Where a layer's norms stand, each named `<name>_layernorm`; None: there is none."""

    before_attention: str | None
    after_attention: str | None
    before_mlp: str | None
    after_mlp: str | None

    @property
    def names(self) -> frozenset[str]:
        return frozenset(f"{name}_layernorm" for name in self if name is not None)


_BEFORE = Norms("input", None, "post_attention", None)


@dataclass(frozen=True, kw_only=True, slots=True)
class Form:
    """The differences between a family's layers and Llama's. Biases are named as in `config.json`, or a fact of the
    family."""

    norms: Norms = _BEFORE
    norm: str = "scale"
    """`scale`: rounds, then multiplies by the weight. `wide`: multiplies, then rounds. `offset`: multiplies by 1 more,
    then rounds. `centred`: as `wide`, around the mean."""
    norm_eps: str = "rms_norm_eps"
    """Name in `config.json` of what is added to a norm's mean square."""
    head_norm: str | None = None
    """The norm of q and k: over each `head`, over `all` heads together, or none."""
    qkv_bias: str | bool = False
    out_bias: str | bool = False
    mlp_bias: str | bool = False
    fuses_qkv: bool = False
    """One product makes q, k and v."""
    fuses_mlp: bool = False
    """One product makes gate and up."""
    experts: ExpertNames | None = None
    """Layers have a mixture of experts, unless `config.json` says otherwise of some."""
    is_parallel: bool = False
    """Attention and MLP read the same norm, and both are added at the end of the layer."""
    act: str | None = "hidden_act"
    """Name in `config.json` of the MLP's activation; None: silu."""
    score_scale: str | float | None = None
    """What scores are multiplied by, or its name in `config.json`; None: one over the root of the head dim, or of
    `score_width`."""
    score_width: str | None = None
    embedding_factor: str | None = None
    residual_factor: str | None = None
    logit_factor: str | None = None
    logit_divisor: str | None = None
    """Names in `config.json` of numbers: those that embeddings, what layers add, and logits are multiplied by; and the
    one that logits are divided by."""
    logit_cap: str | None = None
    """Name in `config.json` of the number c that logits x stay within: c * tanh(x / c)."""
    rotary_dtype: str | None = None
    """The dtype of the rotary tables, as torch spells it; None: that of the hidden state."""
    scales_embedding: bool = False
    """Embeddings are multiplied by the root of their width."""
    rotated_layers: str | None = None
    """Name in `config.json` of which layers rotate; None: all do."""
    rotates_in_windows: bool = False
    """Where layers slide, they alone rotate."""
    is_latent: bool = False
    """Keys and values are made from one vector a token (`model.latent`)."""
    in_pairs: str | bool = False
    """Numbers (2i, 2i + 1) of the part of q and k that is rotated belong together, not (i, i + half of it)."""
    has_heads_by_kind: bool = False
    """Layers of different kinds differ in the width and the number of their KV heads."""
    keys_are_values: str | None = None
    """Name in `config.json` of whether layers that see everything have no product for v: it is k, before its norm."""
    norms_values: bool = False
    """Each head of v is normed, without a weight."""
    has_sinks: bool = False
    """Each query head has a learned sink: a score of its own in the softmax, of a value that is zero."""
    sharing_layers: str | None = None
    """Name in `config.json` of how many layers, the last ones, attend to keys and values of an earlier layer."""
    doubles_sharing_mlp: str | None = None
    """Name in `config.json` of whether those have an MLP of twice the width."""
    layer_inputs: str | None = None
    """Name in `config.json` of how many numbers each layer reads of a token besides the hidden state; 0: none."""
    layer_vocabulary: str | None = None
    """Name in `config.json` of how many tokens have such numbers."""
    has_layer_scalar: bool = False
    """What a layer leaves, all of it, is multiplied by a number of its own, which is among the weights."""
    gates_attention: bool = False
    """What attention gives is multiplied by a sigmoid, which the query's product makes besides."""
    mixer: str | None = None
    """What layers are that keep a state in place of keys and values (`model.decoder`): all but those that
    `layer_types` calls full attention. None: there are none."""

    @property
    def has_other_weights(self) -> bool:
        """Decode can multiply with rounded weights, or as they stand in a file: all of its layers have a form for that,
        in compiled steps and others."""
        return self.mixer is None and not self.is_latent


@dataclass(frozen=True, kw_only=True, slots=True)
class GgufNames:
    """The tensors of a family's GGUF files. Tensors are named without `blk.N.` and their endings, weights without
    `model.layers.N.`; how keys become a `config.json` is code (`model.gguf.architectures`)."""

    architecture: str
    """`general.architecture`."""
    layer: Mapping[str, str]
    """Tensor of a block -> weight of a layer. `*`: those of all experts, one below the other. A weight without an
    ending has the whole name of its tensor."""
    with_experts: Mapping[str, str] = field(default_factory=dict)
    """Tensors of a block of a model that has experts, where others of its family have none, besides those of `layer` or
    in place of theirs."""
    final_norm: str = "output_norm"
    """The tensor of the norm behind all layers."""
    outside: Mapping[str, str] = field(default_factory=dict)
    """Tensors of no block that some models of the family have -> weights without `model.`, as in `layer`."""
    by_layer: frozenset[str] = frozenset()
    """Keys that may be a list of numbers that differ, one for each layer."""
    biases: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Name in config.json -> the tensors of a block that have biases if it is true; it is if any of them has one."""
    in_pairs: bool = False
    """Rows of q and k stand as numbers (2i, 2i + 1) that are rotated together, not as halves of a head."""
    norm_offset: float = 0.0
    """The number added to every norm but `plain_norms`: a file stores norms as they are used."""
    plain_norms: frozenset[str] = frozenset()
    decays: frozenset[str] = frozenset()
    """Tensors that hold minus the exponential of their weight."""
    rope_tensors: tuple[str, ...] = ()
    """Tensors about positions that it may have."""
    only_with: str | None = None
    """The family has files of another one's architecture in which this key is a number above 0."""
    factors: Mapping[str, str] = field(default_factory=dict)
    """Key -> name in config.json of the number by which something is multiplied; 0 stands for 1."""
    reads: frozenset[str] = frozenset()
    """Keys that mean something to this family alone."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Family:
    """One family, by its `model_type`."""

    names: frozenset[str]
    """Names in `config.json` that its forward pass depends on. `layer_types` and `sliding_window` are among them where
    its layers can slide; with `sliding_window` alone they all do."""
    refused: Mapping[str, str] = field(default_factory=dict)
    """Name in `config.json` -> why a file that says it is refused."""
    thetas: Mapping[str, float] = field(default_factory=lambda: {EVERY_LAYER: USUAL_THETA})
    """Kind of layer -> base frequency of its rotary table, where the file is silent. Several: each kind has a table."""
    sliding_theta: str = "rope_theta"
    """Name in `config.json` of the base frequency of layers that slide, where they have a table."""
    rope_kinds: tuple[str, ...] = ROPE_KINDS
    usual_tables: Mapping[str, Mapping[str, object]] = field(default_factory=dict)
    """Kind of layer -> its rotary table where the file says nothing of it, or its base frequency alone; of others that
    is the default kind."""
    needs_window: bool = False
    """Its layers of some kind slide, so `sliding_window` is a number."""
    turned: float | None = None
    """The share of each head that is turned where the file is silent, in families that may turn a part; None: all of
    it, always."""
    query_growth: str | None = None
    """Name, among those about positions, of the beta by which queries grow: they are multiplied by
    1 + beta * ln(1 + floor(position / original length)). Keys are not."""
    original_positions: int | None = None
    """`original_max_position_embeddings` where the file is silent, in families that have the name beside their tables;
    None: inside them, and `max_position_embeddings` where the file is silent."""
    has_plain_tokenizer: bool = False
    """transformers takes tokenizer.json alone where the file says so. In other families it has a class of its own, or
    looks for other files first."""
    spelled: Mapping[str, str] = field(default_factory=dict)
    """Part of a weight's name, as in Llama -> how published files spell it. Where transformers takes both, so do we."""
    packed: str | None = None
    """The one `quant_method` that its files may name: tensors of experts may be packed so."""
    form: Form
    gguf: GgufNames | None = None
    """None: its files are of another family's architecture, or are not read."""

    @property
    def has_tables_by_kind(self) -> bool:
        """Each kind of layer has a rotary table of its own."""
        return len(self.thetas) > 1
