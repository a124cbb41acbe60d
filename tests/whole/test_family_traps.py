"""What a family does besides the usual, each left out once: the logits are others, so `test_families` would see it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import VOCABULARY, moved, reference_model, save_tiny_model, tolerance

from stratakv.runtime.layers.base import Advance
from stratakv.runtime.layers.recurrent import RecurrentLayer
from stratakv.runtime.model import delta_net, latent, model, model_files, opening
from stratakv.runtime.model.delta_net import DeltaNet
from stratakv.runtime.model.head import Head
from stratakv.runtime.model.layer_inputs import LayerInputs, LayerTables
from stratakv.runtime.model.mlp import Experts
from stratakv.runtime.model.model import Model
from stratakv.runtime.untrusted.families import FAMILIES
from stratakv.runtime.untrusted.rope import Rope

SEEN = 1e-3
"""A share of the largest logit: ten times what `test_families` allows, or a hundred times."""
Patch = Callable[[pytest.MonkeyPatch], object]


def form(family: str, **changes: Any) -> Patch:
    """The family's layers compute otherwise."""
    changed = replace(FAMILIES[family], form=replace(FAMILIES[family].form, **changes))
    return lambda patch: patch.setitem(FAMILIES, family, changed)


def later(change: Callable[[Any], object], only: str = "mlp") -> Patch:
    """Each layer that has the part `only` is changed when it is there: its files would have tensors without a place."""
    load = model_files.own_modules

    def changed(*given: Any) -> Any:
        decoder = load(*given)
        for layer in decoder.model.layers:
            if hasattr(layer, only):
                change(layer)
        return decoder

    return lambda patch: patch.setattr(opening, "own_modules", changed)


def _one_table(patch: pytest.MonkeyPatch) -> None:
    read = model_files.read_rope
    patch.setattr(model_files, "read_rope", lambda *said: dict.fromkeys(read(*said), read(*said)["full_attention"]))


def _whole_heads(patch: pytest.MonkeyPatch) -> None:
    read = model_files.read_rope
    whole = {"partial_rotary_factor": 1.0}
    patch.setattr(model_files, "read_rope", lambda *said: {kind: one | whole for kind, one in read(*said).items()})


def _proportion(patch: pytest.MonkeyPatch) -> None:
    """All numbers of a head are turned, in layers that see everything."""
    read = model_files.read_rope
    plain = {"rope_type": "default", "rope_theta": 1e6}
    patch.setattr(model_files, "read_rope", lambda *said: read(*said) | {"full_attention": plain})


def _gates_together(layer: Any) -> None:
    """As if the queries of all heads came first, then the gates."""
    weight = layer.self_attn.q_proj.weight
    weight.copy_(weight.view(2, 6, 16, 48).transpose(0, 1).reshape(weight.shape))


def _in_one_piece(self: DeltaNet, hidden: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """As if all rows of q came first, then those of k, v and z, and those of b before a."""
    q, k, v, z = torch.split(self.in_proj_qkvz(hidden), [*self.parts, self.parts[2]], -1)
    return torch.cat([q, k, v], -1), z, *self.in_proj_ba(hidden).chunk(2, -1)


def experts(family: str, **changes: Any) -> Patch:
    """The family's mixtures compute otherwise."""
    names = FAMILIES[family].form.experts
    assert names is not None
    return form(family, experts=replace(names, **changes))


def _mixture(**changes: Any) -> Patch:
    """Parts of each layer's mixture are as said; in `gate` the bias by which it chooses is 0."""

    def change(layer: Any) -> None:
        if isinstance(layer.mlp, Experts) and changes:
            vars(layer.mlp).update(changes)
        elif isinstance(layer.mlp, Experts):
            layer.mlp.gate.e_score_correction_bias.zero_()

    return later(change)


def _rounded_bounds(patch: pytest.MonkeyPatch) -> None:
    read = model_files.read_rope
    rounded = {"truncate": True}
    patch.setattr(model_files, "read_rope", lambda *said: {kind: one | rounded for kind, one in read(*said).items()})


def of_experts(change: Callable[[Any], object]) -> Patch:
    return later(lambda layer: [change(expert) for expert in layer.mlp.experts])


def _first_sources(config: Any) -> list[int]:
    """The first layer of each kind in place of the last that has keys."""
    return [config.layer_types.index(kind) for kind in config.layer_types]


def _inputs(change: Callable[[LayerTables], object]) -> Patch:
    """What all layers read of a token besides comes from changed weights."""
    load = model_files.own_modules

    def changed(*given: Any) -> Any:
        decoder = load(*given)
        with torch.no_grad():
            change(decoder.model.inputs)
        return decoder

    return lambda patch: patch.setattr(opening, "own_modules", changed)


TRAPS: dict[str, Patch] = {
    "glm4_moe_lite: epsilon inside": lambda patch: patch.setattr(latent, "_EPS", 1e-2),
    "glm4_moe_lite: pairs": form("glm4_moe_lite", in_pairs=False),
    "glm4_moe_lite: factor of experts": experts("glm4_moe_lite", factor=None),
    "glm4_moe_lite: bias that chooses": _mixture(),
    "glm4_moe_lite: shared expert": _mixture(has_shared=False),
    "glm4_moe_lite-groups: stretched scores": lambda patch: patch.setattr(latent, "_stretch", lambda rope: 1.0),
    "glm4_moe_lite-groups: groups": experts("glm4_moe_lite", groups=None),
    "granite: scores": form("granite", score_scale=None),
    "granite: embeddings": form("granite", embedding_factor=None),
    "granite: what layers add": form("granite", residual_factor=None),
    "granite: logits": form("granite", logit_divisor=None),
    "cohere2: logits": form("cohere2", logit_factor=None),
    "cohere2: the mean": form("cohere2", norm="wide"),
    "cohere2: pairs": form("cohere2", in_pairs=False),
    "cohere2: full layers do not rotate": form("cohere2", rotates_in_windows=False),
    "exaone4: full layers do not rotate": form("exaone4", rotates_in_windows=False),
    "exaone4: norms of heads": later(lambda layer: setattr(layer.self_attn, "head_norm", None)),
    "olmo3: norms over all heads": later(lambda layer: setattr(layer.self_attn, "head_norm", None)),
    "cohere2: side by side": later(lambda layer: setattr(layer, "is_parallel", False)),
    "olmo3: sliding layers are not stretched": _one_table,
    "glm4: pairs": form("glm4", in_pairs=False),
    "glm4: a part rotates": _whole_heads,
    "glm4: norms behind": later(lambda layer: setattr(layer, "_norms", layer._norms._replace(after_mlp=None))),
    "ministral3: queries grow": lambda patch: patch.setattr(Rope, "query_growth", None),
    "gemma3_text: one more than the weight": form("gemma3_text", norm="wide"),
    "gemma3_text: embeddings": form("gemma3_text", scales_embedding=False),
    "gemma4_text: the weight alone": form("gemma4_text", norm="offset"),
    "gemma4_text: embeddings": form("gemma4_text", scales_embedding=False),
    "gemma4_text: scores as they are": form("gemma4_text", score_scale=None),
    "gemma4_text: norms of values": later(lambda layer: delattr(layer.self_attn, "v_norm")),
    "gemma4_text: a number for the whole layer": later(lambda layer: layer.layer_scalar.data.fill_(1)),
    "gemma4_text: a quarter of a wide head rotates": _proportion,
    "gemma4_text: logits have a cap": lambda patch: patch.setattr(Head, "scaled", lambda _, products: products),
    "gemma4_text-shared: the last layer with keys": lambda patch: patch.setattr(model, "sources", _first_sources),
    "gemma4_text-shared: what a layer reads besides": lambda patch: patch.setattr(
        LayerInputs, "of", lambda *_: torch.zeros(1, 120, 12)
    ),
    "gemma4_text-shared: the table of tokens": _inputs(lambda own: own.table.zero_()),
    "gemma4_text-shared: the root of its width": _inputs(lambda own: own.table.mul_(own.width**-0.5)),
    "gemma4_text-shared: the embedded token": _inputs(lambda own: own.projection.weight.zero_()),
    "gemma4_text-shared: its norm": _inputs(lambda own: own.norm.weight.fill_(1)),
    "gemma4_text-shared: the norm behind what is read": later(
        lambda layer: layer.after_input_layernorm.weight.data.fill_(1)
    ),
    "gemma4_text-experts: a factor of each expert": later(lambda layer: layer.mlp.per_expert_scale.data.fill_(1)),
    "gemma4_text-experts: a weight before the router": later(lambda layer: layer.mlp.router_scale.data.fill_(1)),
    "gemma4_text-experts: the root of the width": later(lambda layer: setattr(layer.mlp, "router_root", 1.0)),
    "gemma4_text-experts: the norm behind experts": later(lambda layer: layer.mlp.after_experts.weight.data.fill_(1)),
    "gemma4_text-experts: the norm behind the dense MLP": later(
        lambda layer: layer.mlp.after_dense.weight.data.fill_(1)
    ),
    "gpt_oss: sinks": later(lambda layer: layer.self_attn.sinks.fill_(-torch.inf)),
    "gpt_oss: shares of the chosen alone": experts("gpt_oss", scores="softmax", renormalises=False),
    "gpt_oss: clamps": of_experts(lambda expert: setattr(expert, "limit", 1e9)),
    "gpt_oss: a steeper sigmoid": of_experts(lambda expert: setattr(expert, "slope", 1.0)),
    "gpt_oss: biases of experts": of_experts(lambda expert: expert.down_proj.bias.zero_()),
    "gpt_oss: gate and up in turn": of_experts(
        lambda expert: expert.gate_proj.weight.copy_(torch.cat([expert.gate_proj.weight, expert.up_proj.weight])[::2])
    ),
    "gpt_oss: a bias of the router": later(lambda layer: layer.mlp.gate.bias.zero_()),
    "gpt_oss: bounds of YaRN are not rounded": _rounded_bounds,
    "smollm3: some layers do not rotate": form("smollm3", rotated_layers=None),
    "lfm2: its own norm of heads": later(lambda layer: setattr(layer.self_attn, "head_norm", None), only="self_attn"),
    "lfm2: what is gated before and what behind": later(
        lambda layer: layer.conv.in_proj.weight.copy_(layer.conv.in_proj.weight.roll(48, 0)), only="conv"
    ),
    "lfm2: the present token has the last tap": later(
        lambda layer: layer.conv.conv.weight.copy_(layer.conv.conv.weight.flip(2)), only="conv"
    ),
    "qwen3_5_text: one more than the weight": form("qwen3_5_text", norm="wide"),
    "qwen3_5_text: a quarter of a head rotates": _whole_heads,
    "qwen3_5_text: of each head the query, then the gate": later(_gates_together, only="self_attn"),
    "qwen3_5_text: the gate": later(
        lambda layer: layer.self_attn.q_proj.weight.view(6, 2, 16, 48)[:, 1].zero_(), only="self_attn"
    ),
    "qwen3_5_text: the weight alone behind the rule": later(
        lambda layer: layer.linear_attn.norm.weight.add_(1), only="linear_attn"
    ),
    "qwen3_5_text: the present token has the last tap": later(
        lambda layer: layer.linear_attn.conv1d.weight.copy_(layer.linear_attn.conv1d.weight.flip(2)),
        only="linear_attn",
    ),
    "qwen3_5_text: a key head serves neighbours": lambda patch: patch.setattr(
        delta_net, "for_each", lambda heads, count, are_tiled: heads.repeat(1, count, 1)
    ),
    "qwen3_5_text: keys have length one": lambda patch: patch.setattr(delta_net, "of_length_one", lambda rows: rows),
    "qwen3_5_text: queries have a scale": later(
        lambda layer: setattr(layer.linear_attn, "scale", 1.0), only="linear_attn"
    ),
    "qwen3_5_moe_text: shares have the sum 1": experts("qwen3_5_moe_text", renormalises=False),
    "qwen3_next: rows by key head": lambda patch: patch.setattr(DeltaNet, "_projected", _in_one_piece),
}


@torch.inference_mode()
def off(folder: Path) -> float:
    """How far logits of a text are from transformers', as a share of the largest."""
    tokens = torch.arange(7, 127) * 5 % (VOCABULARY - 3) + 3
    ours = Model.load(folder, torch.device("cpu"), torch.float32)
    tables = ours.tables(0, len(tokens), ours.rope.reach(len(tokens)))

    kept: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    def attend(layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float) -> torch.Tensor:
        q, k = ours.rotate(layer, q, k, tables)
        kept.setdefault(ours.sources[layer], (k, v))
        k, v = kept[ours.sources[layer]]
        distance = torch.arange(len(tokens))[:, None] - torch.arange(len(tokens))
        seen = (distance >= 0) & (distance < (ours.windows[layer] or len(tokens)))
        k, v = (part.repeat_interleave(q.shape[1] // part.shape[1], 1) for part in (k, v))
        scores = (q @ k.transpose(2, 3) * scale).masked_fill(~seen, -torch.inf)
        if (sinks := ours.sinks[layer]) is not None:
            scores = torch.cat([scores, sinks[:, None, None].expand(1, -1, len(tokens), 1)], -1)
        return scores.softmax(-1)[..., : len(tokens)] @ v

    def mix(layer: int, inputs: tuple[torch.Tensor, ...], advance: Advance) -> torch.Tensor:
        state = RecurrentLayer(layer, ours.states[layer] or {}, 16, torch.device("cpu"))
        return state.mix(tuple(rows[0] for rows in inputs), advance).unsqueeze(0)

    hidden = ours.embed(tokens[None])
    inputs = ours.inputs(tokens[None], hidden)
    for layer in range(ours.num_layers):
        hidden = ours.run_layer(ours.layer(layer, prefill=True), hidden, attend, mix, inputs.of(layer))
    expected = reference_model(folder)(tokens[None]).logits[0]
    return float((ours.logits(hidden[0]) - expected).abs().max() / expected.abs().max())


@pytest.mark.parametrize("family", sorted({trap.split(":")[0] for trap in TRAPS}))
def test_nothing_is_left_out(family: str, tmp_path: Path) -> None:
    assert off(moved(save_tiny_model(tmp_path, family), 0.3)) < tolerance(family)


@pytest.mark.parametrize("trap", TRAPS)
def test_what_is_left_out_is_seen(trap: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = moved(save_tiny_model(tmp_path, trap.split(":")[0]), 0.3)
    TRAPS[trap](monkeypatch)
    assert off(folder) > SEEN
