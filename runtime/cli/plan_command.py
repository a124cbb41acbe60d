"""`stratakv plan`: what would live where, and whether it fits."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Annotated

import typer

from ..api.typed_numbers import whole_number
from ..process.terminal import printable
from .options import (
    DeviceOption,
    DiskOption,
    DtypeOption,
    GpuOption,
    HostOption,
    ModelOption,
    PathOption,
    WeightsOption,
    kv_config,
    reading,
)

if TYPE_CHECKING:
    from ...storage import PageLayout
    from ..model.model import Model


def _length(text: str) -> int:
    number = whole_number(text)
    if number < 1:
        raise ValueError(f"a number of tokens from 1, not {text}")
    return number


def plan(
    context: Annotated[
        int, typer.Argument(help="Context length in tokens.", metavar="TOKENS", parser=reading(_length))
    ],
    model: ModelOption = "smollm2",
    shape: Annotated[
        str | None, typer.Option("--shape", help="A known shape instead of a model, as in bench: qwen3.8-27b, ...")
    ] = None,
    device: DeviceOption = "auto",
    dtype: DtypeOption = "auto",
    weights: WeightsOption = "auto",
    gpu_kv_gb: GpuOption = None,
    host_kv_gb: HostOption = None,
    disk_kv_gb: DiskOption = None,
    kv_dir: PathOption = None,
) -> None:
    """Show what would live where, whether a context of that length fits, and what cards of 12, 16 and 24 GB hold."""
    from ..chat.runtime import Runtime
    from ..sessions.saved import store_folders
    from ..sessions.store_cap import told_about, with_disk
    from .chat_setup import store_root

    kv = kv_config(gpu_gb=gpu_kv_gb, host_gb=host_kv_gb, disk_gb=disk_kv_gb, path=kv_dir, budget=2048)
    if shape is not None:
        _show_shape(shape, context, kv.page_size)
        return
    with Runtime.load(model, device=device, dtype=dtype, weights=weights, kv=replace(kv, disk_gb=0.0)) as runtime:
        found = with_disk(runtime.plan, kv, store_root(kv))  # a plan need not touch the store
        _show_sequence(runtime.model, found.layout, context)
        for tier, cap, tokens in found.rows():
            print(f"  {tier:5} cap {cap:>8}  holds {tokens} tokens")
        for line in told_about(store_folders(store_root(kv))):
            print(f"  in the store {printable(line)}")
        _show_cards(runtime.model, found.layout)
        runtime.check_window(0, context, f"a context of {context} tokens")
        found.check(context, f"a context of {context} tokens")
        print("it fits")


def _show_shape(name: str, context: int, page_size: int) -> None:
    from ...storage.files.scratch import scratch_folder
    from ..bench.shapes import model_without_weights
    from ..chat.runtime import page_layout

    with scratch_folder("plan", None) as folder:
        model = model_without_weights(name, folder)
    layout = page_layout(model, page_size, "bfloat16")
    _show_sequence(model, layout, context)
    _show_cards(model, layout)


def _show_sequence(model: Model, layout: PageLayout, context: int) -> None:
    """What a sequence takes, by kind of layer."""
    from ...storage.codecs.compression import usual_ratio
    from ..api.config import KVConfig
    from ..engine.held import held_by
    from ..engine.planner import RECORD_OVERHEAD
    from ..engine.state_interval import state_interval
    from ..layers.recurrent import MOST_STATES

    token_bytes, held = layout.token_bytes * len(model.tiered), held_by(model, layout)
    need = context * token_bytes
    print(
        f"{token_bytes} bytes of KV per token; {context} tokens need {_gb(need)} of host memory, or up to "
        f"{_gb(need * RECORD_OVERHEAD)} of disk"
    )
    if held.state_bytes:
        count = sum(state is not None for state in model.states)
        size = _gb(held.state_bytes)
        print(f"{count} recurrent layers: a state of {size}, up to {MOST_STATES} at a time, and those that a "
              "conversation can go back to")  # fmt: skip
    if held.window_bytes:
        count = sum(window is not None for window in model.windows[: model.num_writing])
        print(f"{count} sliding layers: windows of {_gb(held.window_bytes)}")
    if shared := model.num_layers - model.num_writing:
        print(f"{shared} layers attend to what others keep")
    if every := state_interval(held.left_bytes, token_bytes * usual_ratio(KVConfig().codec, layout), layout.page_size):
        print(f"on disk {_gb(held.left_bytes)} every {every} tokens, for other conversations that begin alike")


def _show_cards(model: Model, layout: PageLayout) -> None:
    """What cards hold, as a table, and what that means."""
    from ..engine.cards import on_cards
    from ..model.decoder import without_memory

    print("a card with weights of          holds copies of the KV of")
    for one in on_cards(model, layout):
        held = f"nothing: {one.lacking}" if one.tokens is None else f"{one.tokens} tokens"
        size = _gb(one.weights_bytes) if one.weights_bytes else "-"
        print(f"  {one.card_gb:3} GB  {one.weights} {size:>8}       {held}")
    print("bf16 unless --weights int8 or int4 is given: embedding and head stay bf16")
    named = without_memory(model.config).named_parameters()
    experts = sum(weight.numel() for name, weight in named if ".experts." in name)
    if experts:
        print(f"all experts are on the card, {experts / 1e9:.3g} billion weights")


def _gb(count: float) -> str:
    return f"{count / 1e9:.3g} GB"
