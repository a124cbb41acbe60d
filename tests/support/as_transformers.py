"""A model directory loaded with our own modules and with transformers': equal to the bit in all they compute."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import torch
from tiny_models import their_model
from torch import Tensor

from stratakv.runtime.layers.base import Advance
from stratakv.runtime.layers.recurrent import RecurrentLayer
from stratakv.runtime.model.model import Model
from stratakv.runtime.model.model_files import ATTENTION, attention
from stratakv.runtime.model.rotary import QUERIES, RotaryTables
from stratakv.runtime.untrusted.families import FAMILIES

CPU = torch.device("cpu")
ROUNDED = {torch.float32: 1e-4, torch.bfloat16: 0.02}


def own_tables(model: Model, positions: Tensor) -> RotaryTables:
    found = model.rotary(positions, model.dtype, model.rope.reach(int(positions.max()) + 1))
    found.pop(QUERIES, None)  # of which transformers has no table
    return found


def their_tables(model: Model, positions: Tensor) -> RotaryTables:
    """By transformers' own module, whose tables are those of the longest text it has seen."""
    made, like = model.inner.rotary_emb, torch.empty(0, dtype=model.dtype)
    if hasattr(made, "layer_types"):
        return {kind: made(like, positions, kind) for kind in made.layer_types}
    cos, sin = made(like, positions)
    if model.config.model_type == "cohere2":  # whose tables have the numbers of a pair side by side
        cos, sin = (torch.cat([table[..., ::2]] * 2, -1) for table in (cos, sin))
    return dict.fromkeys(set(model.kinds), (cos, sin))


def outputs(model: Model, tables: Callable[[Model, Tensor], RotaryTables]) -> list[Tensor]:
    """Embeddings, tables of several positions, what each layer hands to attention and gives, and logits."""

    def attend(layer: int, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
        found.extend([q, k, v, torch.tensor(scale)])
        return (q * scale) * v.repeat_interleave(q.shape[1] // v.shape[1], 1)

    hidden = model.embed(torch.arange(11).view(1, 11))
    found = [hidden]
    for positions in ([0, 1, 2], [900, 3000, 3999], [4, 5, 6]):  # dynamic tables grow, and come back
        for kind, table in sorted(tables(model, torch.tensor([positions])).items()):
            found.extend(table)
            layer = model.kinds.index(kind)
            dim = model.shapes[layer].dim
            q = torch.linspace(-1, 1, 2 * 3 * dim).view(1, 2, 3, dim).to(model.dtype)
            found.extend(model.rotate(layer, q, q * 2, {kind: table}))
    for layer in range(model.num_layers):
        hidden = model.run_layer(model.layer(layer, prefill=False), hidden, attend)
        found.append(hidden)
    return [*found, model.logits(hidden[:, -1])]


def with_shared(forward: Callable[..., object], shared: dict[str, object]) -> Callable[..., object]:
    """A layer's `forward` that finds and leaves keys and values for other layers in `shared`."""
    return lambda *given, **named: forward(*given, **{**named, "shared_kv_states": shared})


def assert_layers_equal(folder: Path, dtype: torch.dtype) -> Model:
    """The same of models whose layers in transformers keep states or shared keys to themselves, or take other tables
    than ours: a text from its beginning, layer by layer, each from what transformers' gave. A delta net forgets to
    other bits (`delta_rule`)."""
    from transformers.modeling_utils import AttentionInterface

    AttentionInterface.register(ATTENTION, attention)
    theirs = their_model(folder, dtype, ATTENTION)
    own = Model.load(folder, CPU, dtype)
    for kind in own.kinds if own.config.model_type == "gpt_oss" else ():  # whose tables are of half a head
        half = torch.ones(1, 1, own.head_dim // 2, dtype=dtype)
        own._identities[kind, dtype] = half, torch.zeros_like(half)
    kept: dict[int, Tensor] = {}

    def attend(layer: int, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
        if v.shape[1]:
            kept[layer] = v
        v = kept[own.sources[layer]]
        return (q * scale) * v.repeat_interleave(q.shape[1] // v.shape[1], 1)

    def mix(layer: int, inputs: tuple[Tensor, ...], advance: Advance) -> Tensor:
        state = RecurrentLayer(layer, own.states[layer] or {}, 1000, CPU)
        return state.mix(tuple(rows[0] for rows in inputs), advance).unsqueeze(0)

    with torch.inference_mode():
        ids = torch.arange(90).view(1, 90)
        hidden = own.embed(ids)
        assert torch.equal(hidden, theirs.model.embed_tokens(ids))
        inputs = own.inputs(ids, hidden)
        shared: dict[str, object] = {}
        if has_inputs := inputs.of(0) is not None:
            table = theirs.model.get_per_layer_inputs(ids, hidden)
            their_inputs = theirs.model.project_per_layer_inputs(hidden, table)
        for layer, module in enumerate(theirs.model.layers):
            more = inputs.of(layer)
            if has_inputs:
                assert more is not None
                assert (more - their_inputs[:, :, layer]).abs().max() <= 2 * torch.finfo(dtype).eps * more.abs().max()
                more = their_inputs[:, :, layer]
            module.forward = with_shared(module.forward, shared)
            expected = own.run_layer(module, hidden, attend, more=more)
            found = own.run_layer(own.layer(layer, prefill=False), hidden, attend, mix, more)
            off = float((found - expected).abs().max() / expected.abs().max())
            is_delta = own.states[layer] is not None and "matrix" in own.states[layer]
            assert off <= (ROUNDED[dtype] if is_delta else 0.0), (layer, off)
            hidden = expected
        assert own.eos_ids >= {own.config.eos_token_id}
    return own


def assert_equal(folder: Path, dtype: torch.dtype = torch.float32) -> Model:
    config = json.loads((folder / "config.json").read_text())
    form = FAMILIES[config["model_type"]].form
    if form.mixer or form.has_sinks or config.get("num_kv_shared_layers"):
        return assert_layers_equal(folder, dtype)
    with torch.inference_mode():
        own, theirs = (Model.load(folder, CPU, dtype, modules=modules) for modules in ("own", "transformers"))
        sides = outputs(own, own_tables), outputs(theirs, their_tables)
    assert len(sides[0]) == len(sides[1])
    assert all(torch.equal(*pair) for pair in zip(*sides, strict=True))
    assert (own.kinds, own.windows, own.eos_ids) == (theirs.kinds, theirs.windows, theirs.eos_ids)
    assert own.config.rope_parameters == theirs.config.rope_parameters
    assert type(own.tokenizer) is type(theirs.tokenizer)
    return own
