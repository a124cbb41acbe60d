"""A model's share of a decode step as rows of a table (`kernels.compiled.record`), and the buffers between them.

    first     product | INPUTS, where layers read of a token besides
    layer     QKV | HEADS | room for what attends, filled in by the engine at every step | OUT | GATE_UP | DOWN
    recurrent QKV | MIX | OUT | GATE_UP | DOWN
    behind    gate | projection, of what a layer reads besides
    last      HEAD

Hidden states are fp32 throughout; weights are used as `LeanLayer` has them. A residual is added where the next product
reads it: then every thread has the sum without waiting for another.

Shapes  B sequences, C hidden size, H query heads, G KV heads, D head dim, V vocabulary
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ...kernels.compiled import record as r
from ...kernels.compiled.experts import both
from ...kernels.compiled.heads import heads, heads_bytes
from ...kernels.compiled.inputs import inputs
from ..process.apart import fp32
from .expert_rows import NUM_ROWS, ExpertBuffers
from .expert_weights import LayerExperts
from .head import Head
from .head_shapes import HeadShape
from .lean_layer import LeanInputs, LeanLayer, Norm
from .lean_recurrent import LeanRecurrent
from .products import Product, Strip
from .rotary import QUERIES
from .strip_rows import fill_products

ROW_SPACE = 4
"""Rows of a sequence in a layer: what chooses, and what attends."""
_ACTS = {"silu": r.SILU, "gelu_tanh": r.GELU_TANH}


class _Added(NamedTuple):
    """A sum of hidden states: whole * (base + factor * norm(more))."""

    base: Tensor
    more: Tensor | None = None
    norm: Norm | None = None
    factor: float = 1.0
    whole: float = 1.0


class StepRows:
    """The rows of a model's step for a batch size.

    Args:
        lean: all of the model's layers. rotated: whether each of them rotates.
        head: gives logits.
        of_inputs: of what all layers read of a token besides; None: they read nothing.
    """

    def __init__(
        self, lean: list[LeanLayer], rotated: list[bool], head: Head, batch: int, of_inputs: LeanInputs | None = None
    ) -> None:
        first = lean[0]
        self.mixes = {number: layer for number, layer in enumerate(lean) if isinstance(layer, LeanRecurrent)}
        """The recurrent layers. Whatever else is said by layer is of those that attend, one behind the other."""
        self.attends = [number for number in range(len(lean)) if number not in self.mixes]
        """The others' numbers."""
        attending = [lean[number] for number in self.attends]
        self.scales = [layer.scale for layer in attending]
        """Of each layer's attention."""
        self.shapes = [HeadShape(layer.heads, layer.kv_heads, layer.dim) for layer in attending]
        """Each layer's heads."""
        self.batch = batch
        width = first.qkv.weight.shape[1]
        space = ROW_SPACE * batch
        self._known: dict[int, list[Strip]] = {}
        products = [some for layer in lean for some in layer.products]
        products += [] if of_inputs is None else [of_inputs.projection]
        count = sum(len(self._strips(product)) for product in (*products, head.product))
        count += sum(NUM_ROWS + (layer.beside is not None) for layer in lean if layer.layer_experts is not None)
        count += (1 + space) * len(attending) + len(self.mixes) + (of_inputs is not None)
        self.table = np.zeros((count, r.WIDTH), dtype=np.int64)
        self._filled = 0
        self._heads_rows: list[int] = []
        """Where HEADS is, of each layer; what attends comes behind it."""
        self._in_pairs: set[int] = set()
        """Those of layers that rotate numbers in pairs."""
        self.hidden, self.logits = fp32(batch, width), fp32(batch, head.product.weight.shape[0])
        """The embedded tokens `[B, C]`, to be filled in; `[B, V]`, what comes out."""
        self.q = [fp32(batch, heads, dim) for heads, _, dim in self.shapes]
        """Every layer's rotated queries."""
        self._attended = fp32(batch * max(layer.out.weight.shape[1] for layer in lean))
        self.places = np.zeros((len(attending), batch, 4), dtype=np.int64)
        """Where each layer's new k and v go, for HEADS."""
        self.states = {
            number: np.zeros((batch, 2 * len(layer.mixer.shapes)), dtype=np.int64)
            for number, layer in self.mixes.items()
        }
        """Where each recurrent layer's states lie (`LayerKV.begin_mix`)."""
        self.parts = np.zeros((len(attending), batch), dtype=np.int64)
        """Parts that each layer's attention leaves."""
        self._merging: dict[int, tuple[int, int]] = {}
        """What OUT's input of each layer is, for `merges`."""
        self._kept: list[Tensor] = []
        sums, outs = [fp32(batch, width) for _ in "abc"], [fp32(batch, width) for _ in "abc"]
        qkvs = fp32(batch * max(layer.qkv.weight.shape[0] for layer in lean))
        inners = fp32(batch * max((layer.gate_up.weight.shape[0] for layer in lean if layer.has_mlp), default=0))
        mixtures = {layer.layer_experts.mixture for layer in lean if layer.layer_experts is not None}
        self._experts = {mixture: ExpertBuffers(mixture, batch) for mixture in mixtures}
        shared = fp32(batch, width), fp32(batch, 1), fp32(batch, width)
        self._kept += [*sums, *outs, qkvs, inners, *shared]
        self.inputs: Tensor | None = None
        """Each token's row of what layers read besides `[B, N * P]`, to be filled in; None: they read nothing."""
        gated = None if of_inputs is None else self._inputs(of_inputs, len(lean))
        above = _Added(self.hidden)
        for number, layer in enumerate(lean):
            rows = layer.qkv.weight.shape[0]
            qkv = qkvs[: batch * rows].view(batch, rows)
            row = self._products(layer.qkv, qkv, r.M_QKV)
            self._sum(row, above, sums[0], layer.before_attention)
            base = self.hidden if number == 0 else sums[0]
            if isinstance(layer, LeanRecurrent):
                (row,) = self._next(1)
                layer.mix(row, batch, qkv, self._attended, self.states[number], self._keep)
                row = self._products(layer.out, outs[0], r.M_OUT)
                row[[r.P_INPUT, r.P_A]] = r.PLAIN, self._attended.data_ptr()
            else:
                self._attention(layer, qkv, outs[0], is_rotated=rotated[number])
            count = layer.gate_up.weight.shape[0] if layer.has_mlp else 0
            inner = inners[: batch * count].view(batch, count)
            added = _Added(base, outs[0], layer.after_attention, layer.factor)
            if layer.layer_experts is not None:
                self._mixture(layer, layer.layer_experts, added, sums[1], outs[1], inner, shared)
            else:
                row = self._products(layer.gate_up, inner, r.M_GATE_UP)
                self._sum(row, added, sums[1], layer.before_attention if layer.is_parallel else layer.before_mlp)
                row[r.P_PARALLEL] = layer.is_parallel
                row = self._products(layer.down, outs[1], r.M_DOWN)
                row[[r.P_INPUT, r.P_A, r.P_ACT]] = r.GATED, inner.data_ptr(), _ACTS[layer.act_name]
            whole = 1.0 if layer.scalar is None else float(layer.scalar)
            above = _Added(sums[1], outs[1], layer.after_mlp, layer.factor, whole)
            if layer.inputs is not None:
                assert gated is not None
                row = self._products(layer.inputs.gate, gated[number, :, 0], r.M_GATE_UP)
                self._sum(row, above._replace(whole=1.0), sums[2], None)
                row = self._products(layer.inputs.projection, outs[2], r.M_DOWN)
                row[[r.P_INPUT, r.P_A, r.P_ACT]] = r.GATED, gated[number].data_ptr(), _ACTS[layer.act_name]
                above = _Added(sums[2], outs[2], layer.inputs.after, whole=whole)
        row = self._products(head.product, self.logits, r.M_HEAD)
        self._sum(row, above, sums[0], Norm(head.norm))
        assert self._filled == len(self.table)
        self.input = self.last = sums[0]
        """`[B, C]`: what a layer but the first begins with, once its QKV is there; and what the last one leaves."""

    def _inputs(self, of: LeanInputs, layers: int) -> Tensor:
        """The next rows, those of what all layers read besides: `[N, B, 2, P]`, behind room for their gates."""
        self.inputs, made = fp32(self.batch, layers * of.width), fp32(self.batch, layers * of.width)
        out = fp32(layers * self.batch, 2 * of.width).view(layers, self.batch, 2, of.width)
        self._kept += [made, out]
        row = self._products(of.projection, made, r.M_GATE_UP)
        row[[r.P_INPUT, r.P_A]] = r.PLAIN, self.hidden.data_ptr()
        (row,) = self._next(1)
        row[[r.OPERATION, r.ITEMS, r.BARRIER, r.MARK]] = inputs.address, self.batch * layers, 1, r.M_GATE_UP
        row[[r.I_BATCH, r.I_LAYERS, r.I_WIDTH]] = self.batch, layers, of.width
        row[[r.I_MADE, r.I_ROWS, r.I_OUT]] = made.data_ptr(), self.inputs.data_ptr(), out.data_ptr()
        row[[r.I_NORM, r.I_EPS]] = self._wide(of.norm.weight), r.bits(of.norm.eps)
        row[[r.I_ROOT, r.I_FACTOR]] = r.bits(of.root), r.bits(of.factor)
        return out

    def _attention(self, layer: LeanLayer, qkv: Tensor, out: Tensor, *, is_rotated: bool) -> None:
        """The next rows, from HEADS to OUT."""
        number = len(self._heads_rows)
        self._heads_rows.append(self._filled)
        if layer.in_pairs:
            self._in_pairs.add(self._filled)
        self._heads(self._next(1)[0], layer, number, qkv, is_rotated=is_rotated)
        self._next(ROW_SPACE * self.batch)
        row = self._products(layer.out, out, r.M_OUT)
        if layer.sinks is not None:
            row[r.P_D] = self._wide(layer.sinks)
        if layer.is_gated:
            row[[r.P_GATES, r.P_GATE_STRIDE, r.P_GATE_DIM]] = qkv.data_ptr() + 4 * layer.dim, qkv.shape[1], layer.dim
        self.merges(number)

    def attended(self, layer: int) -> Tensor:
        """fp32 `[B, H * D]`: what attends elsewhere leaves a layer's result here."""
        heads, _, dim = self.shapes[layer]
        return self._attended[: self.batch * heads * dim].view(self.batch, -1)

    def merges(self, layer: int, parts: Tensor | None = None, room: int = 0) -> None:
        """OUT's input: `parts`, `room` numbers apart for each sequence; None: `attended`."""
        wanted = (0 if parts is None else parts.data_ptr(), room)
        if self._merging.get(layer) == wanted:
            return
        self._merging[layer] = wanted
        row = self.table[self.attending(layer).stop]
        if parts is None:
            row[[r.P_INPUT, r.P_A]] = r.PLAIN, self._attended.data_ptr()
            return
        row[[r.P_INPUT, r.P_A, r.P_PARTS, r.P_ROOM]] = (
            r.MERGED, parts.data_ptr(), self.parts[layer].ctypes.data, room,
        )  # fmt: skip
        row[[r.P_DIM, r.P_GROUPS]] = self.shapes[layer].dim, self.shapes[layer].kv_heads

    def attending(self, layer: int) -> slice:
        """The rows between HEADS and OUT of a layer: all sequences' scores, choices, attention."""
        start = self._heads_rows[layer] + 1
        return slice(start, start + ROW_SPACE * self.batch)

    def turn(self, kinds: list[str], tables: dict[str, tuple[Tensor, Tensor]]) -> None:
        """Use these rotary tables of `for_lean`, by layer kind, in all layers that rotate."""
        self._tables = {kind: tuple(table.float().contiguous() for table in both) for kind, both in tables.items()}
        for kind, (cos, sin) in self._tables.items():
            here = [row for row, at in zip(self._heads_rows, self.attends, strict=True) if kinds[at] == kind]
            self.table[here, r.H_COS], self.table[here, r.H_SIN] = cos.data_ptr(), sin.data_ptr()
            rotated = [row for row in here if self.table[row, r.H_ROTARY]]
            self.table[rotated, r.H_ROTARY] = sin.shape[-1]
            self.table[[row for row in rotated if row in self._in_pairs], r.H_PAIRS] = sin.shape[-1]
        if QUERIES in self._tables:
            self.table[self._heads_rows, r.H_FACTORS] = self._tables[QUERIES][0].data_ptr()

    def _products(self, product: Product, y: Tensor, mark: int) -> np.ndarray:
        """The next rows, those of a product. Returns the first."""
        strips = self._strips(product)
        rows = self._next(len(strips))
        self._kept += fill_products(rows, strips, self.batch, y, mark)
        first: np.ndarray = rows[0]
        return first

    def _mixture(
        self, layer: LeanLayer, experts: LayerExperts, added: _Added, total: Tensor, y: Tensor, inner: Tensor,
        shared: tuple[Tensor, Tensor, Tensor],
    ) -> None:  # fmt: skip
        """The next rows, those of a layer's experts over the norm of a sum, which goes to `total`. `shared`: what the
        shared expert or the dense MLP leaves; the former's share before the sigmoid; what experts leave beside the
        latter."""
        buffers, beside = self._experts[experts.mixture], layer.beside
        row = self._products(experts.router, buffers.logits, r.M_GATE_UP)
        self._sum(row, added, total, layer.before_mlp if beside is None else beside.router)
        if layer.has_mlp:
            norm = layer.before_mlp if beside is None else beside.before_dense
            for product, out in ((layer.gate_up, inner), (layer.shared_gate, shared[1])):
                if product is not None:
                    self._sum(self._products(product, out, r.M_GATE_UP), _Added(total), total, norm)
            row = self._products(layer.down, shared[0], r.M_DOWN)
            row[[r.P_INPUT, r.P_A, r.P_ACT]] = r.GATED, inner.data_ptr(), _ACTS[layer.act_name]
        rows = self._next(NUM_ROWS)
        buffers.fill(rows, experts, self.batch, y if beside is None else shared[2], _ACTS[layer.act_name])
        self._sum(rows[1], _Added(total), total, layer.before_mlp if beside is None else beside.before_experts)
        rows[2, r.P_INPUT] = r.SUM
        if experts.factors is not None:
            rows[0, r.R_FACTORS] = self._wide(experts.factors)
        if beside is not None:
            (row,) = self._next(1)
            row[[r.OPERATION, r.ITEMS, r.BARRIER, r.MARK]] = both.address, self.batch, 1, r.M_DOWN
            row[[r.P_COLUMNS, r.P_EPS]] = y.shape[1], r.bits(beside.after_dense.eps)
            row[[r.P_A, r.P_NORM]] = shared[0].data_ptr(), self._wide(beside.after_dense.weight)
            row[[r.P_D, r.P_NORM_D]] = shared[2].data_ptr(), self._wide(beside.after_experts.weight)
            row[r.P_Y] = y.data_ptr()
        elif layer.has_mlp:
            rows[3, [r.P_D, r.P_NORM_D]] = shared[0].data_ptr(), shared[1].data_ptr()

    def _strips(self, product: Product) -> list[Strip]:
        """The product's strips, which are kept."""
        if id(product) not in self._known:
            self._known[id(product)] = product.strips
        return self._known[id(product)]

    def _next(self, count: int) -> np.ndarray:
        self._filled += count
        return self.table[self._filled - count : self._filled]

    def _sum(self, row: np.ndarray, added: _Added, total: Tensor, norm: Norm | None) -> None:
        """The input of a product is the norm of a sum, which goes to `total`."""
        row[[r.P_INPUT, r.P_A, r.P_SUM]] = r.SUM, added.base.data_ptr(), total.data_ptr()
        row[r.P_D] = 0 if added.more is None else added.more.data_ptr()
        row[[r.P_FACTOR, r.P_TOTAL]] = r.bits(added.factor), r.bits(added.whole)
        row[r.P_NORM_D] = 0 if added.norm is None else self._wide(added.norm.weight)
        row[r.P_NORM] = 0 if norm is None else self._wide(norm.weight)
        row[r.P_CENTRED] = norm is not None and norm.is_centred
        row[r.P_EPS] = r.bits(next((n.eps for n in (norm, added.norm) if n is not None), 0.0))

    def _heads(self, row: np.ndarray, layer: LeanLayer, number: int, qkv: Tensor, *, is_rotated: bool) -> None:
        groups = 0 if layer.shares else layer.kv_heads
        items = self.batch * (layer.heads + 2 * groups)
        row[[r.OPERATION, r.ITEMS, r.BARRIER]] = heads.address, items, 1
        row[[r.MARK, r.MEMORY]] = r.M_HEADS, heads_bytes(layer.dim)
        row[[r.H_BATCH, r.H_HEADS, r.H_GROUPS, r.H_DIM]] = self.batch, layer.heads, groups, layer.dim
        row[[r.H_QKV, r.H_Q, r.H_PLACES]] = qkv.data_ptr(), self.q[number].data_ptr(), self.places[number].ctypes.data
        row[r.H_ROTARY] = int(is_rotated)
        row[r.H_PAIRS] = max(strip.pairs for strip in self._strips(layer.qkv))
        row[[r.H_NORMS_VALUES, r.H_KEYS_ARE_VALUES]] = layer.value_eps is not None, layer.keys_are_values
        row[r.H_GATED] = layer.is_gated
        if layer.head_norm is not None:
            row[[r.H_NORM, r.H_EPS]] = self._wide(layer.head_norm.weight), r.bits(layer.head_norm.eps)
        elif layer.wide_norms is not None:
            weight = torch.cat([norm.weight.float() for norm in layer.wide_norms])
            row[[r.H_NORM, r.H_EPS, r.H_WIDE]] = self._wide(weight), r.bits(layer.wide_norms[0].eps), 1

    def _wide(self, numbers: Tensor) -> int:
        """The address of these numbers as fp32, which are kept."""
        return self._keep(numbers.float())

    def _keep(self, numbers: Tensor) -> int:
        """The address of these numbers, which are kept."""
        self._kept.append(numbers.detach().contiguous())
        return self._kept[-1].data_ptr()
