"""The console command `stratakv`. Thin: options in, library calls, one clear line when it cannot be."""

from __future__ import annotations

import gc
import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from .bench_cli import bench
from .cli_errors import fail, user_errors
from .cli_options import (
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
    PrefetchOption,
    ProfileOption,
    WeightsOption,
    kv_config,
)
from .sessions_cli import sessions
from .threads import choose

app = typer.Typer(
    name="stratakv",
    help="Chat with documents far larger than the GPU's memory.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,  # rich alone would take longer than all else that --help does
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def main() -> None:
    """Entry point: user errors become one line on stderr and exit code 2."""
    choose()
    gc.set_threshold(
        100_000
    )  # what imports make stays: to look through it every 700 objects takes a tenth of the start
    try:
        app()
    except BrokenPipeError:
        sys.exit(141)


@app.command()
def chat(
    model: ModelOption = "smollm2",
    device: DeviceOption = "auto",
    dtype: DtypeOption = "auto",
    weights: WeightsOption = "own",
    gpu_kv_gb: GpuOption = None,
    host_kv_gb: HostOption = None,
    disk_kv_gb: DiskOption = None,
    kv_dir: PathOption = None,
    index: IndexOption = "auto",
    budget: BudgetOption = 2048,
    kv_dtype: KvDtypeOption = "auto",
    profile: ProfileOption = None,
    codec: CodecOption = "zstd",
    prefetch: PrefetchOption = "auto",
    file: Annotated[
        list[Path] | None, typer.Option("-f", "--file", help="Read this document first; repeatable.")
    ] = None,
    prompt: Annotated[str | None, typer.Option("-p", "--prompt", help="Ask once, print the reply, exit.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="With -p: print one JSON object.")] = False,
    session: Annotated[str | None, typer.Option("--session", help="Resume this saved session.")] = None,
    system: Annotated[str | None, typer.Option("-sys", "--system-prompt", help="System prompt.")] = None,
    n_predict: Annotated[int, typer.Option("-n", "--n-predict", help="Most tokens in a reply.")] = 512,
    temp: Annotated[float, typer.Option("--temp", help="Sampling temperature; 0 is greedy.")] = 0.0,
    top_p: Annotated[float, typer.Option("--top-p")] = 0.95,
    top_k: Annotated[int, typer.Option("--top-k")] = 50,
    min_p: Annotated[float, typer.Option("--min-p")] = 0.0,
    seed: Annotated[int | None, typer.Option("--seed")] = None,
) -> None:
    """Chat over documents; with -p, or with text piped in, answer once."""
    from .repl import Options, one_shot, run

    if prompt is None and not sys.stdin.isatty():
        prompt = sys.stdin.read()
    generation: dict[str, Any] = {"max_new_tokens": n_predict}
    if temp:
        generation |= {"do_sample": True, "temperature": temp, "top_p": top_p, "top_k": top_k, "min_p": min_p}
    if seed is not None:
        generation["seed"] = seed
    try:
        kv = kv_config(
            gpu_gb=gpu_kv_gb, host_gb=host_kv_gb, disk_gb=disk_kv_gb, path=kv_dir, index=index, budget=budget,
            dtype=kv_dtype, profile=profile, codec=codec, prefetch=prefetch,
        )  # fmt: skip
        options = Options(model, device, dtype, kv, file or [], session, system, generation, weights)
        if prompt is None:
            run(options)
        else:
            one_shot(options, prompt, as_json)
    except user_errors() as error:
        fail(error)
    except KeyboardInterrupt:
        raise typer.Exit(130) from None


@app.command()
def plan(
    context: Annotated[int, typer.Argument(help="Context length in tokens.")],
    model: ModelOption = "smollm2",
    device: DeviceOption = "auto",
    dtype: DtypeOption = "auto",
    gpu_kv_gb: GpuOption = None,
    host_kv_gb: HostOption = None,
    disk_kv_gb: DiskOption = None,
    kv_dir: PathOption = None,
) -> None:
    """Show what would live where, and whether a context of that length fits."""
    from .runtime import Runtime

    try:
        kv = kv_config(gpu_gb=gpu_kv_gb, host_gb=host_kv_gb, disk_gb=disk_kv_gb, path=kv_dir, budget=2048)
        with Runtime.load(model, device=device, dtype=dtype, kv=kv) as runtime:
            found = runtime.plan
            print(
                f"{found.token_bytes} bytes of KV per token; {context} tokens need "
                f"{context * found.token_bytes / 1e9:.3g} GB"
            )
            for tier, cap, tokens in found.rows():
                print(f"  {tier:5} cap {cap:>8}  holds {tokens} tokens")
            runtime.check_fits(0, context, f"a context of {context} tokens")
            print("it fits")
    except user_errors() as error:
        fail(error)


app.add_typer(sessions, name="sessions")
app.command()(bench)


@app.command()
def calibrate(
    model: Annotated[str, typer.Argument(help="Alias, hub id, model directory or .gguf file.")],
    text: Annotated[list[Path], typer.Option("--text", help="Text file to learn from; repeatable.")],
    codewords: Annotated[int, typer.Option("--codewords", help="Per layer and KV head.")] = 1024,
    tokens: Annotated[int, typer.Option("--tokens", help="How much of the texts is read.")] = 16384,
    out: Annotated[Path | None, typer.Option("--out", help="Profile. Default: where the chat looks for it.")] = None,
    device: DeviceOption = "auto",
    dtype: DtypeOption = "auto",
) -> None:
    """Learn what the index a2ats must know about a model: once per model, a few minutes."""
    from .calibrate import calibrate as learn
    from .evaluation.progress import Bar

    try:
        with Bar() as bar:
            made = learn(
                model, text, device=device, dtype=dtype, codewords=codewords, tokens=tokens, out=out, ticker=bar
            )
    except user_errors() as error:
        fail(error)
    except KeyboardInterrupt:
        raise typer.Exit(130) from None
    print(
        f"{made.path}: {made.num_bytes / 1e6:.1f} MB, {made.codewords} codewords per KV head of {made.num_layers} "
        f"layers from {made.num_tokens} tokens, in {made.seconds:.0f} s"
    )
    print("error of q.k on text not learned from, as a share of its variance, and that of plain k-means:")
    for layer, ours, plain in made.compared:
        print(f"  layer {layer:3}  {ours:.3f}  {plain:.3f}")


@app.command(name="eval")
def evaluation(
    suite: Annotated[str, typer.Option("--suite", help="exact, fidelity, needles or tasks.")],
    model: ModelOption = "smollm2",
    device: DeviceOption = "auto",
    dtype: Annotated[
        str, typer.Option("--dtype", help="float32 adds no noise of its own; auto: as a chat would run.")
    ] = "float32",
    index: Annotated[
        str, typer.Option("--index", help="Comma-separated; dense, window and oracle are always beside them.")
    ] = "bounds",
    budget: Annotated[str, typer.Option("--budget", help="Comma-separated token counts or shares.")] = "336,592",
    ctx: Annotated[int, typer.Option("--ctx", help="Tokens of a context.")] = 4096,
    samples: Annotated[
        int | None, typer.Option("--samples", help="Contexts (tasks: per task). Default: 8; tasks: 4.")
    ] = None,
    seed: Annotated[int, typer.Option("--seed", help="Another seed draws other contexts.")] = 0,
    tasks: Annotated[str | None, typer.Option("--tasks", help="Comma-separated tasks; default: all.")] = None,
    exact_question: Annotated[
        bool, typer.Option("--exact-question", help="Read questions exactly, as a chat does; default: sparsely.")
    ] = False,
    texts: Annotated[
        Path | None, typer.Option("--texts", help="Folder of the texts. Default: where `make data` puts them.")
    ] = None,
    kv_dir: Annotated[
        Path | None, typer.Option("--kv-dir", help="Keep prefilled contexts here for other runs; default: nowhere.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
    out: Annotated[Path | None, typer.Option("--out", help="Also write the JSON here.")] = None,
    plot: Annotated[Path | None, typer.Option("--plot", help="Draw a picture here (.png, .svg, .pdf).")] = None,
    strict: Annotated[bool, typer.Option("--strict", help="Exit 1 if an index misses a mark.")] = False,
) -> None:
    """Measure an index against dense attention on the same samples; `exact` exits with 1 if a check fails."""
    from .evaluation import plot as picture
    from .evaluation.options import Options
    from .evaluation.progress import Bar
    from .evaluation.run import DEFAULT_SAMPLES, evaluate

    try:
        if plot is not None:
            picture.check(plot)
        for path in (out, plot):
            if path is not None and not path.absolute().parent.is_dir():
                raise ValueError(f"{path}: its folder does not exist")
        options = Options(ctx, DEFAULT_SAMPLES.get(suite, 1) if samples is None else samples, seed, tasks)
        with Bar() as bar:
            result = evaluate(
                suite, model=model, device=device, dtype=dtype, indexes=_names(index), budgets=_budgets(budget),
                options=options, texts=texts, kv_dir=kv_dir, question_sparse=not exact_question, ticker=bar,
            )  # fmt: skip
        if out is not None:
            out.write_text(json.dumps(result, indent=1) + "\n")
        if plot is not None:
            picture.draw(result, plot)
    except user_errors() as error:
        fail(error)
    except KeyboardInterrupt:
        raise typer.Exit(130) from None
    if as_json:
        print(json.dumps(result, indent=1))
    else:
        from .evaluation.report import show

        show(result)
    if result["passed"] is False and (strict or suite == "exact"):
        raise typer.Exit(1)


def _names(listed: str) -> list[str]:
    return [name.strip() for name in listed.split(",")]


def _budgets(listed: str) -> list[int | float]:
    try:
        numbers = [float(part) for part in listed.split(",")]
    except ValueError:
        raise ValueError(f"budget is a comma-separated list of numbers, not {listed!r}") from None
    return [int(number) if number.is_integer() else number for number in numbers]


if __name__ == "__main__":
    main()
