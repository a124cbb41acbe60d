"""`stratakv chat`: the conversation at a prompt, or one question and its answer."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .one_line import say
from .options import (
    BudgetOption,
    CodecOption,
    DeviceOption,
    DiskOption,
    DtypeOption,
    GpuOption,
    HostOption,
    IndexOption,
    KvDtypeOption,
    ModelOption,
    PathOption,
    PlacementOption,
    PrefetchOption,
    ProfileOption,
    StateEveryOption,
    WeightsOption,
    kv_config,
    real,
    whole,
)

if TYPE_CHECKING:
    from .chat_setup import ChatOptions


def chat(
    model: ModelOption = "smollm2",
    device: DeviceOption = "auto",
    dtype: DtypeOption = "auto",
    weights: WeightsOption = "auto",
    gpu_kv_gb: GpuOption = None,
    host_kv_gb: HostOption = None,
    disk_kv_gb: DiskOption = None,
    kv_dir: PathOption = None,
    index: IndexOption = "auto",
    budget: BudgetOption = 2048,
    placement: PlacementOption = None,
    kv_dtype: KvDtypeOption = "auto",
    profile: ProfileOption = None,
    codec: CodecOption = "zstd",
    prefetch: PrefetchOption = "auto",
    state_every: StateEveryOption = None,
    file: Annotated[
        list[Path] | None, typer.Option("-f", "--file", help="Read this document first; repeatable; -: stdin.")
    ] = None,
    prompt: Annotated[
        str | None,
        typer.Option("-p", "--prompt", help="Ask once, print the reply, exit. Text piped in is read before it."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="With -p: print one JSON object.")] = False,
    session: Annotated[str | None, typer.Option("--session", help="Resume this saved session; it must exist.")] = None,
    save: Annotated[
        str | None, typer.Option("--save", help="With -p: then keep the conversation under this name, new or not.")
    ] = None,
    system: Annotated[str | None, typer.Option("-sys", "--system-prompt", help="System prompt.")] = None,
    n_predict: Annotated[
        int | None, whole("-n", "--n-predict", help="Most tokens in a reply; -1: until there is no room. [512]")
    ] = None,
    temp: Annotated[float | None, real("--temp", help="Sampling temperature; 0 is greedy. [0]")] = None,
    top_p: Annotated[float | None, real("--top-p", help="Used when sampling, like the next two. [0.95]")] = None,
    top_k: Annotated[int | None, whole("--top-k", help="0: off. [50]")] = None,
    min_p: Annotated[float | None, real("--min-p", help="[0]")] = None,
    repeat_penalty: Annotated[float | None, real("--repeat-penalty", help="1: none. [1]")] = None,
    max_repeats: Annotated[
        int | None, whole("--max-repeats", help="End a reply that says the same so often in a row; 0: never. [3]")
    ] = None,
    drop_thinking: Annotated[
        bool | None, typer.Option("--drop-thinking", help="Forget a reply's thinking if the model's template does so.")
    ] = None,
    stop: Annotated[
        list[str] | None, typer.Option("--stop", help="End a reply before this text; repeatable; \\n is a new line.")
    ] = None,
    seed: Annotated[int | None, whole("--seed", help="Of sampling. Default: another each time.")] = None,
) -> None:
    """Chat over documents; with -p, or with text piped in, answer once.

    A conversation over several calls: --save NAME with the first, --session NAME --save NAME with the others.
    """
    from .chat_setup import ChatOptions, settle_store

    kv = kv_config(
        gpu_gb=gpu_kv_gb, host_gb=host_kv_gb, disk_gb=disk_kv_gb, path=kv_dir, index=index, budget=budget,
        dtype=kv_dtype, profile=profile, codec=codec, prefetch=prefetch,
        state_every=state_every, placement=placement,
    )  # fmt: skip
    generation = _given(
        max_new_tokens=n_predict, top_p=top_p, top_k=top_k, min_p=min_p, repetition_penalty=repeat_penalty, seed=seed,
        max_repeats=max_repeats, drop_thinking=drop_thinking,
    )  # fmt: skip
    generation |= _temperature(temp) | _stops(stop)
    options = ChatOptions(
        model, device, dtype, settle_store(kv, say), file or [], session, system, generation, weights, save=save
    )
    _converse(options, prompt, as_json)


def _converse(options: ChatOptions, prompt: str | None, as_json: bool) -> None:
    """Converse at a prompt if somebody is there to type at it, else answer once."""
    from ..chat.documents import text_of
    from ..process.standard_input import PipedText, is_standard_input, is_terminal, read_standard_input

    is_read_as_file = any(map(is_standard_input, options.files))
    if prompt is None and is_terminal():
        if as_json or options.save is not None:
            raise ValueError("--json and --save go with -p; in the chat /save NAME keeps the conversation")
        from .repl import run

        run(options)
        return
    if prompt is None and is_read_as_file:
        raise ValueError("stdin is read as a document; give the question with -p")
    if prompt is None:
        prompt = text_of(read_standard_input(), "stdin")
    elif not is_read_as_file:
        piped = PipedText()
        found = piped.at_once()
        options.piped = text_of(found or b"", "stdin")
        options.late = piped.late if found is None else None
    from .one_shot import one_shot

    one_shot(options, prompt, as_json)


def _given(**settings: Any) -> dict[str, Any]:
    return {name: value for name, value in settings.items() if value is not None}


def _temperature(value: float | None) -> dict[str, Any]:
    if value is None:
        return {}
    return {"do_sample": True, "temperature": value} if value else {"do_sample": False}


def _stops(texts: list[str] | None) -> dict[str, Any]:
    from .typed_settings import unescaped

    if texts and "" in texts:
        raise ValueError("--stop is a text that ends a reply, not an empty one")
    return {"stop_strings": tuple(map(unescaped, texts))} if texts else {}
