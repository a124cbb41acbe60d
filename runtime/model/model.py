"""A model as the engine drives it: layer by layer, with attention and positions of our own.

Its layers are `decoder`'s or transformers' own modules. They are called with a function that attention calls back with
each layer's queries, keys and values, un-rotated (transformers' layers get the identity as their rotation); positions
are applied here, with the family's own tables and convention. Decode runs the same weights in a form of ours where it
knows the layer (`lean_layer`).

Importing transformers' models takes seconds; what of it is imported, where and why not more, is said in `decoder`,
`llama_config` and `tokens`.

Supported are families whose whole forward pass is: embed, decoder layers, norm, head. Others are refused by name.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ..process.turns import Turns
from ..untrusted.families import FAMILIES
from ..untrusted.numbers import reading
from .captured import CapturedLayer, Graphs
from .decoder import apply_rotary_pos_emb, factor, rotates
from .ends import well_known_ends
from .head import Head
from .head_shapes import head_shapes, kinds_of, value_dim, windows_of
from .latent import AttendHeads
from .layer_inputs import LayerInputs
from .layer_rotation import LayerRotation
from .lean_forms import lean_layer
from .lean_layer import LeanInputs, LeanLayer, fused, in_halves
from .mlp import Experts, stated
from .model_files import rope_of
from .opening import open_modules
from .packing import Packing, packed_product
from .products import ALL_KNOWN, INT8_EXPERTS, PRODUCTS, Product
from .rotary import QUERIES, Rotary, RotaryTables
from .sharing import num_writing, sources
from .step_tables import KeptTables, StepTables
from .template import Template
from .widened import Widened, multiplies_slowly

if TYPE_CHECKING:
    from .file_weights import FileWeights
    from .step_rows import StepRows

Attend = Callable[[int, Tensor, Tensor, Tensor, float], Tensor]
"""(layer, q [B,H,T,D], k [B,G,T,D], v [B,G,T,D], scale) -> [B,H,T,D]; q and k un-rotated."""
Mix = Callable[[int, tuple[Tensor, ...], Callable[..., Any]], Tensor]
"""(layer, inputs `[B,T,..]`, how those of one sequence go on from its state) -> `[B,T,..]`: of a recurrent layer."""
AttendOne = Callable[[int, Tensor, Tensor, Tensor, float], Tensor]
"""(layer, q [B,H,D], k [B,G,D], v [B,G,D], scale) -> [B,H,D]; q and k rotated."""


class Model:
    """A decoder-only model, its tokenizer and its geometry."""

    def __init__(self, hf: Any, tokenizer: Any, in_file: FileWeights | None = None) -> None:
        """
        Args:
            in_file: has the matrices of `hf`, whose own have no memory then.
        """
        config = hf.config
        self.hf, self.tokenizer, self.config = hf, tokenizer, config
        self.inner = hf.model
        self.turns = Turns("this model")
        """The turn to compute: widened weights, graphs and buffers are shared by everything that uses the model."""
        self._in_file = in_file
        self.packing: Packing | None = getattr(hf, "packing", None)
        self.device: torch.device = self.inner.norm.weight.device
        self.dtype: torch.dtype = next(hf.parameters()).dtype
        is_wider = self.packing is None and multiplies_slowly(self.device, self.dtype)
        self.prefill_dtype = torch.float32 if is_wider else self.dtype
        self.step_dtype = self.dtype if in_file is None else torch.float32
        """The dtype of hidden states and rotary tables in a decode step."""
        self.num_layers: int = config.num_hidden_layers
        self.num_heads: int = config.num_attention_heads
        self.shapes = head_shapes(config)
        """The heads of each layer."""
        self.rope = rope_of(config)
        self.max_positions: int = self.rope.window
        """The number of tokens that the model is meant for."""
        self.kinds = kinds_of(config)
        self.windows = windows_of(config, self.max_positions)
        """The window of each layer in tokens; None also where no text is longer, as in Phi-3's long models."""
        self.states = [getattr(layer, "state_shapes", None) for layer in self.inner.layers]
        """Those of each recurrent layer's state (`DecoderLayer.state_shapes`); None: the layer attends."""
        self.sinks = [getattr(getattr(layer, "self_attn", None), "sinks", None) for layer in self.inner.layers]
        """`[H]` of each layer (`kernels.sinks`); None: it has none."""
        self.sources, self.num_writing = sources(config), num_writing(config)
        """The layer whose keys and values each attends to; the first so many layers have their own, or a state."""
        self.tiered = [at for at in range(self.num_writing) if self.windows[at] is None and self.states[at] is None]
        _, self.num_kv_heads, self.head_dim = self.shapes[self.tiered[0] if self.tiered else 0]
        """Of the layers whose KV is in pages."""
        self.value_dim = value_dim(config)
        """The width of values where keys contain them; None: values have keys' width."""
        family = sys.modules[type(self.inner.layers[0]).__module__]
        form = FAMILIES[config.model_type].form
        self._in_pairs, self._embedding_factor = stated(form.in_pairs, config), factor(config, form.embedding_factor)
        is_theirs_alike = not self._in_pairs and not form.has_heads_by_kind
        self._apply_rotary = family.apply_rotary_pos_emb if is_theirs_alike else apply_rotary_pos_emb
        rotary_dtype = form.rotary_dtype
        self._rotary = Rotary(
            self.rope, self.kinds, self.device, None if rotary_dtype is None else getattr(torch, rotary_dtype)
        )
        dims = {kind: shape.dim for kind, shape in zip(self.kinds, self.shapes, strict=True)}
        self._step_tables = KeptTables(self._rotary, dims, self.step_dtype, self.device)
        self._no_positions = torch.zeros(1, 1, dtype=torch.long, device=self.device)
        """For transformers' layers: their queries do not grow."""
        self._identities: dict[tuple[str, torch.dtype], tuple[Tensor, Tensor]] = {}
        self._widened = Widened(self.prefill_dtype, self.device, in_file)
        self.aside = self._widened.aside
        """Layers may be run inside in the midst of another one, whose copy for prefill is as it was afterwards."""
        self._rotated = [rotates(config, layer) for layer in range(self.num_layers)]
        self.use_weights(self._loaded)

    @property
    def _loaded(self) -> str:
        """The weights that there are whatever decode multiplies with; what is in a file or packed is all there is."""
        return "file" if self._in_file is not None else "own" if self.packing is None else self.packing.weights

    def use_weights(self, weights: str) -> None:
        """Choose the weights that decode multiplies with from now on, one of `WEIGHTS`. Raises ValueError if that
        cannot be."""
        if weights != self._loaded and (self._loaded != "own" or weights not in PRODUCTS):
            raise ValueError(f"a model that was loaded with other weights cannot have weights={weights}; load it again")
        mixtures = [layer.mlp for layer in self.inner.layers if isinstance(layer.mlp, Experts)]
        if mixtures and weights == "int8" and self.packing is None:
            raise ValueError(INT8_EXPERTS)
        is_packed, in_file = self.packing is not None, self._in_file
        for mixture in mixtures:
            if is_packed:
                mixture.multiply = torch.nn.Module.__call__
            elif in_file is not None:
                mixture.multiply = lambda layer, x: in_file.multiply(layer, x)  # a function: copies of a layer share it
        product = packed_product if is_packed else fused(PRODUCTS[weights]) if in_file is None else in_file.product
        self.lean = [
            lean_layer(layer, *shape, is_rotated=is_rotated, product=product, halves_only=is_packed)
            for layer, shape, is_rotated in zip(self.inner.layers, self.shapes, self._rotated, strict=True)
        ]
        are_known = all(lean is not None and lean.has_halves for lean in self.lean)
        if weights != "own" and not is_packed and not are_known:
            raise ValueError(f"weights={weights} {ALL_KNOWN}")
        self.use_graphs(Graphs() if self.device.type == "cuda" else None)
        head = self.hf.lm_head
        exact = fused(Product) if self._in_file is None else product
        form = FAMILIES[self.config.model_type].form
        times = factor(self.config, form.logit_factor) / factor(self.config, form.logit_divisor)
        cap = None if form.logit_cap is None else getattr(self.config, form.logit_cap)
        self.logits = Head(self.inner.norm, head, exact([head]), times, cap)
        """Maps the last layer's output to logits."""
        self.step_logits = Head(self.inner.norm, head, product([head]), times, cap)
        """`logits` of a decode step, whose product may be a rounded one."""
        tables = getattr(self.inner, "inputs", None)
        self._lean_inputs = None if tables is None else LeanInputs(tables, exact)
        self.weights = weights

    def use_graphs(self, graphs: Graphs | None) -> None:
        """Let decode replay its layers' halves as graphs from now on; None: call them. Which experts a token has is
        asked on the host, so layers with experts are called."""
        self.graphs = graphs
        self.halves: list[LeanLayer | CapturedLayer | None] = [
            None if lean is None or not lean.has_halves
            else CapturedLayer(lean, graphs) if graphs and lean.experts is None
            else lean
            for lean in self.lean
        ]  # fmt: skip

    @classmethod
    def load(
        cls, directory: Path, device: torch.device, dtype: torch.dtype, weights: str = "own", modules: str = "own",
        files: Sequence[Path] = (), on_tokenizer: Callable[[Any], object] = lambda tokenizer: None,
    ) -> Model:  # fmt: skip
        """Load a Hugging Face directory.

        Args:
            weights: the weights that decode multiplies with, one of `WEIGHTS`.
            modules: `own` layers (`decoder`), or `transformers`', which take seconds more to import: for whoever
                runs its forward pass beside ours.
            files: of the GGUF model, for its weights as they stand there (`file`), with our own layers on a CPU;
                `directory` has the other files then (`locate.locate_file`).
            on_tokenizer: given the tokenizer before the weights are read.

        Raises:
            ModelFileError: it is not a model we can run. ValueError: its weights cannot be had as `weights`.
        """
        opened = open_modules(directory, device, dtype, weights, modules, files, on_tokenizer)
        with reading(directory / "config.json", "a configuration of a model we can run"):
            model = cls(*opened)
        if weights != model.weights:
            model.use_weights(weights)
        return model

    @cached_property
    def eos_ids(self) -> frozenset[int]:
        """Tokens that end a reply: the model's own, the tokenizer's, the chat template's, and well-known ones."""
        stated = [self.tokenizer.eos_token_id, Template(self.tokenizer).turn_end]
        for config in (self.config, self.hf.generation_config):
            ids = getattr(config, "eos_token_id", None)
            stated += ids if isinstance(ids, list) else [ids]
        added = {token.content: number for number, token in self.tokenizer.added_tokens_decoder.items()}
        return frozenset(well_known_ends(added, (number for number in stated if number is not None)))

    def embed(self, ids: Tensor) -> Tensor:
        """Embed token ids `[B, T]` as `[B, T, hidden]`."""
        embedding = self.inner.embed_tokens
        hidden: Tensor = embedding(ids) if self._in_file is None else self._in_file.embedded(embedding, ids)
        return hidden if self._embedding_factor == 1 else hidden * self._embedding_factor

    def embed_step(self, tokens: list[int], out: Tensor) -> None:
        """Embed one token of each sequence into fp32 `[B, hidden]`."""
        embedding = self.inner.embed_tokens
        is_plain = self._in_file is None and type(embedding).forward is torch.nn.Embedding.forward
        if not is_plain or self._embedding_factor != 1:
            out.copy_(self.embed(torch.tensor(tokens)))
            return
        for b, token in enumerate(tokens):
            out[b] = embedding.weight[token]

    def embed_wide(self, tokens: np.ndarray) -> Tensor:
        """Embed token ids `[T]` as `[1, T, hidden]` in `prefill_dtype`."""
        ids = torch.from_numpy(tokens.astype(np.int64)).to(self.device)
        return self.embed(ids.unsqueeze(0)).to(self.prefill_dtype)

    def input_rows(self, tokens: list[int], out: Tensor) -> None:
        """Take one token's row of each sequence from the table of what layers read besides, into fp32 `[B, N * P]`."""
        table, ids = self.inner.inputs.table, torch.tensor(tokens)
        out.copy_(table[ids] if self._in_file is None else self._in_file.rows(table, ids))

    def inputs(self, ids: Tensor | np.ndarray, embedded: Tensor) -> LayerInputs:
        """What layers read of token ids `[.., T]`, embedded as `[.., T, hidden]`, besides the hidden state."""
        return LayerInputs(getattr(self.inner, "inputs", None), ids, embedded, self._in_file)

    def tables(self, start: int, stop: int, reach: int) -> RotaryTables:
        """The tables of `rotary` for positions `start .. stop` of a text whose KV has that reach, in
        `prefill_dtype`."""
        reaches = [self.rope.reach_at(reach, position) for position in range(start, stop)]
        positions = torch.arange(start, stop, device=self.device)
        if len(set(reaches)) == 1:
            return self._rotary(positions.unsqueeze(0), self.prefill_dtype, reaches[:1])
        rows = self._rotary(positions.unsqueeze(1), self.prefill_dtype, reaches)
        return {kind: (cos.transpose(0, 1), sin.transpose(0, 1)) for kind, (cos, sin) in rows.items()}

    def rotary(self, positions: Tensor, dtype: torch.dtype, reach: int = 0) -> RotaryTables:
        """cos and sin `[B, T, rotary dim]` by layer kind, for positions `[B, T]` of texts of that reach."""
        return self._rotary(positions, dtype, [reach])

    def rotate(self, layer: int, q: Tensor, k: Tensor, tables: RotaryTables) -> tuple[Tensor, Tensor]:
        """Apply positions to q `[B,H,T,D]` and k `[B,G,T,D]` in the family's way. Numbers that are rotated together
        stand as halves of a head afterwards, in every family."""
        if self._in_pairs and self._rotated[layer]:
            width = tables[self.kinds[layer]][0].shape[-1]
            turned = self.turn(layer, in_halves(q, width).float(), in_halves(k, width).float(), tables)
            return turned[0].to(q.dtype), turned[1].to(q.dtype)
        return self.turn(layer, q, k, tables)

    def turn(self, layer: int, q: Tensor, k: Tensor, tables: RotaryTables) -> tuple[Tensor, Tensor]:
        """`rotate` for heads that stand as halves already."""
        if not self._rotated[layer]:
            return q, k
        cos, sin = tables[self.kinds[layer]]
        rotated: tuple[Tensor, Tensor] = self._apply_rotary(q, k, cos, sin)
        if QUERIES in tables:
            return rotated[0] * tables[QUERIES][0].unsqueeze(1).to(q.dtype), rotated[1]
        return rotated

    def rotation(self, layer: int, reach: int = 0) -> LayerRotation:
        """The positions of one layer in texts of that reach, for indexes that work on un-rotated keys."""
        kind = self.kinds[layer]
        frequencies, dtype = self._rotary.frequencies(kind, reach), self._rotary.dtype_of(torch.float32)
        return LayerRotation(frequencies, dtype, lambda keys, table: self.turn(layer, keys, keys, {kind: table})[1])

    def layer(self, layer: int, *, prefill: bool) -> torch.nn.Module:
        """The module of a decoder layer; for prefill, a copy in `prefill_dtype` where that is another dtype, or the
        weights are in a file. A copy is good until the next is made (`widened`)."""
        module: torch.nn.Module = self.inner.layers[layer]
        if not prefill or (self.prefill_dtype == self.dtype and self._in_file is None):
            return module
        return self._widened(module)

    def run_layer(
        self, module: torch.nn.Module, hidden: Tensor, attend: Attend, mix: Mix | None = None,
        more: Tensor | None = None, attend_heads: AttendHeads | None = None,
    ) -> Tensor:  # fmt: skip
        """Run a decoder layer on `[B, T, hidden]` and `more` (`inputs`), with `attend` or `attend_heads`, or `mix`."""
        out: Tensor | tuple[Tensor, ...] = module(
            hidden,
            position_embeddings=self._identity(module, hidden.dtype) if hasattr(module, "self_attn") else None,
            attention_mask=None,
            position_ids=self._no_positions,
            use_cache=False,
            shared_kv_states={},  # of Gemma 4's: it puts the keys there that other layers have no own ones for
            strata_attend=attend,
            strata_mix=mix,
            strata_attend_heads=attend_heads,
            per_layer_input=more,
        )
        return out[0] if isinstance(out, tuple) else out

    def step_tables(self, positions: list[int], reaches: list[int] | None = None) -> StepTables:
        """The tables for one new token at each of these positions, in texts whose KV has these `reaches`; None: the
        reaches that texts of such lengths have."""
        each = [
            self.rope.reach_at(0 if reaches is None else reaches[b], position) for b, position in enumerate(positions)
        ]
        tables = self._step_tables.at(positions, each)
        if self.graphs is None:
            return tables
        return tables._replace(lean={kind: self.graphs.held(kind, table) for kind, table in tables.lean.items()})

    def step_layer(
        self, layer: int, hidden: Tensor, tables: StepTables, attend: AttendOne, mix: Mix | None = None,
        more: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        """Run a decoder layer on one new token of each sequence, `[B, hidden]`, and on `more` `[B, P]`; its attention
        is `attend`, or it mixes tokens by `mix`."""
        halves = self.halves[layer]
        if halves is not None:
            q, k, v = halves.before(hidden, *tables.lean[self.kinds[layer]])
            q = grown(q, tables)
            return halves.after(hidden, attend(layer, q, k, v, halves.scale), *(() if more is None else (more,)))

        def attend_all(at: int, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
            q, k = self.rotate(at, q, k, tables.rotary)
            return attend(at, q[:, :, 0], k[:, :, 0], v[:, :, 0], scale).unsqueeze(2)

        module, each = self.layer(layer, prefill=False), None if more is None else more.unsqueeze(1)
        return self.run_layer(module, hidden.unsqueeze(1), attend_all, mix, each)[:, 0]

    @property
    def can_compile(self) -> bool:
        """`step_rows` can be had."""
        are_known = self.packing is None and all(lean is not None and lean.can_compile for lean in self.lean)
        return self.device.type == "cpu" and are_known and self.dtype in (torch.float32, torch.bfloat16)

    def step_rows(self, batch: int) -> StepRows:
        """The rows of a compiled step of `batch` sequences, for a model all of whose layers have a lean form."""
        from .step_rows import StepRows

        lean = [layer for layer in self.lean if layer is not None]
        assert len(lean) == self.num_layers
        return StepRows(lean, self._rotated, self.step_logits, batch, self._lean_inputs)

    def query(self, layer: int, hidden: Tensor, tables: StepTables) -> Tensor:
        """The query `[G, R, D]` that a layer would make of one token's `hidden` `[1, hidden]`, without the rest of the
        layer: rotated and scaled, fp32."""
        lean, (_, kv_heads, dim) = self.lean[layer], self.shapes[layer]
        if lean is not None:
            q = grown(lean.before(hidden, *tables.lean[self.kinds[layer]])[0], tables)[0]
            return q.view(kv_heads, -1, dim).float() * lean.scale

        def attend(layer: int, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
            raise _Found(q[0].view(kv_heads, -1, dim).float() * scale)

        try:
            self.step_layer(layer, hidden, tables, attend)
        except _Found as found:
            return found.query
        raise AssertionError(f"layer {layer} attends to nothing")

    def _identity(self, module: Any, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """The rotation that changes nothing, so that queries and keys of a layer arrive un-rotated."""
        key = self.kinds[module.self_attn.layer_idx], dtype
        if key not in self._identities:
            cos, _ = self.rotary(torch.zeros(1, 1, dtype=torch.long, device=self.device), dtype)[key[0]]
            self._identities[key] = (torch.ones_like(cos), torch.zeros_like(cos))
        return self._identities[key]


class _Found(Exception):
    """Ends a layer at its attention, with the query."""

    def __init__(self, query: Tensor) -> None:
        super().__init__()
        self.query = query


def grown(q: Tensor, tables: StepTables) -> Tensor:
    """Queries `[B, H, D]` of a step, times the factor of their positions in models that have one."""
    return q * tables.lean[QUERIES][0].to(q.dtype) if QUERIES in tables.lean else q
