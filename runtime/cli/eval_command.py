"""`stratakv eval` and `stratakv calibrate`: measuring an index, and learning what one must know about a model."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from ..process.outputs import check_outputs, deliver, write_text
from .one_line import UNDECIDED
from .options import DeviceOption, DtypeOption, ModelOption, at_home, path, reading, whole


def calibrate(
    model: Annotated[
        str,
        typer.Argument(help="Alias, hub id, model directory or .gguf file.", metavar="MODEL", parser=reading(at_home)),
    ],
    text: Annotated[list[Path], typer.Option("--text", help="Text file to learn from; repeatable.")],
    codewords: Annotated[int, whole("--codewords", help="Per layer and KV head.")] = 1024,
    tokens: Annotated[int, whole("--tokens", help="How much of the texts is read.")] = 16384,
    out: Annotated[Path | None, path("--out", help="Profile. Default: where the chat looks for it.")] = None,
    device: DeviceOption = "auto",
    dtype: DtypeOption = "auto",
) -> None:
    """Learn what the index a2ats must know about a model: once per model, a few minutes."""
    from ..evaluation.calibrate import calibrate as learn
    from ..evaluation.progress import Bar

    with Bar() as bar:
        made = learn(model, text, device=device, dtype=dtype, codewords=codewords, tokens=tokens, out=out, ticker=bar)
    print(
        f"{made.path}: {made.num_bytes / 1e6:.1f} MB, {made.codewords} codewords per KV head of {made.num_layers} "
        f"layers from {made.num_tokens} tokens, in {made.seconds:.0f} s"
    )
    print("error of q.k on text not learned from, as a share of its variance, and that of plain k-means:")
    for layer, ours, plain in made.compared:
        print(f"  layer {layer:3}  {ours:.3f}  {plain:.3f}")


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
    ctx: Annotated[int, whole("--ctx", help="Tokens of a context.")] = 4096,
    samples: Annotated[int | None, whole("--samples", help="Contexts (tasks: per task). Default: 8; tasks: 4.")] = None,
    seed: Annotated[int, whole("--seed", help="Another seed draws other contexts.")] = 0,
    tasks: Annotated[str | None, typer.Option("--tasks", help="Comma-separated tasks; default: all.")] = None,
    question: Annotated[
        str, typer.Option("--question", help="sparse; exact: read as in a chat; prompt: a part of the context's.")
    ] = "sparse",
    texts: Annotated[
        Path | None, path("--texts", help="Folder of the texts. Default: where `make data` puts them.")
    ] = None,
    kv_dir: Annotated[
        Path | None, path("--kv-dir", help="Keep prefilled contexts here for other runs; default: nowhere.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
    out: Annotated[Path | None, path("--out", help="Also write the JSON here.")] = None,
    plot: Annotated[Path | None, path("--plot", help="Draw a picture here (.png, .svg, .pdf).")] = None,
    strict: Annotated[
        bool,
        typer.Option("--strict", help="Exit 1 if an index misses a mark, 3 if too few samples leave one undecided."),
    ] = False,
) -> None:
    """Measure an index against dense attention on the same samples; `exact` exits with 1 if a check fails."""
    from ..api.figures import to_json
    from ..evaluation.options import EvalOptions
    from ..evaluation.plot import draw
    from ..evaluation.progress import Bar
    from ..evaluation.report import show
    from ..evaluation.run import DEFAULT_SAMPLES, evaluate
    from ..process.pictures import check

    check_outputs(out, plot)
    if plot is not None:
        check(plot)
    options = EvalOptions(ctx, DEFAULT_SAMPLES.get(suite, 1) if samples is None else samples, seed, tasks, question)
    with Bar() as bar:
        result = evaluate(
            suite, model=model, device=device, dtype=dtype, indexes=_names(index), budgets=_budgets(budget),
            options=options, texts=texts, kv_dir=kv_dir, ticker=bar,
        )  # fmt: skip
    line = to_json(result, indent=1)
    deliveries = [partial(print, line, flush=True) if as_json else partial(show, result)]
    if out is not None:
        deliveries.append(partial(_write, out, line, is_shown=as_json))
    if plot is not None:
        deliveries.append(partial(draw, result, plot))
    deliver(deliveries)
    if result["passed"] is False and (strict or suite == "exact"):
        raise typer.Exit(1)
    if strict and any(row.get("undecided") for row in result.get("variants", [])):
        raise typer.Exit(UNDECIDED)


def _write(out: Path, line: str, *, is_shown: bool) -> None:
    """Write the result's line to a file. Where that fails the line is printed, unless it was."""
    try:
        write_text(out, line + "\n")
    except OSError:
        if not is_shown:
            print(line, flush=True)
        raise


def _names(listed: str) -> list[str]:
    return [name.strip() for name in listed.split(",")]


def _budgets(listed: str) -> list[int | float]:
    try:
        numbers = [float(part) for part in listed.split(",")]
    except ValueError:
        raise ValueError(f"budget is a comma-separated list of numbers, not {listed!r}") from None
    return [int(number) if number.is_integer() else number for number in numbers]
