"""`stratakv bench`: decode speed over context, batch, index and caps, beside others in the same run."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from ..process.outputs import check_outputs, deliver, write_text
from .options import (
    BudgetOption,
    CodecOption,
    DeviceOption,
    DtypeOption,
    KvDtypeOption,
    ModelOption,
    PlacementOption,
    ProfileOption,
    path,
    real,
    whole,
)


def bench(
    model: ModelOption = "smollm2",
    shape: Annotated[
        str | None, typer.Option("--shape", help="Random weights of this shape instead: llama-3.1-8b, qwen2.5-7b, ...")
    ] = None,
    layers: Annotated[int | None, whole("--layers", help="Only so many layers of the shape.")] = None,
    device: DeviceOption = "auto",
    dtype: DtypeOption = "auto",
    weights: Annotated[str, typer.Option("--weights", help="own, int8, int4; comma-separated.")] = "own",
    contexts: Annotated[str, typer.Option("--contexts", help="Lengths in tokens, comma-separated.")] = "512,7500",
    batch: Annotated[str, typer.Option("--batch", help="Sequences at once, comma-separated.")] = "1",
    index: Annotated[str, typer.Option("--index", help="As in chat; comma-separated.")] = "bounds",
    budget: BudgetOption = 1024,
    gpu_kv_gb: Annotated[
        str | None, typer.Option("--gpu-kv-gb", help="Caps of the device tier in GB, comma-separated.")
    ] = None,
    host_kv_gb: Annotated[
        str | None, typer.Option("--host-kv-gb", help="Caps of the host tier in GB, comma-separated.")
    ] = None,
    disk_kv_gb: Annotated[
        str | None, typer.Option("--disk-kv-gb", help="Caps of the disk tier in GB, comma-separated; 0: no disk.")
    ] = None,
    gpu_memory_cap: Annotated[
        float | None, real("--gpu-memory-cap", help="GB of a smaller card to stand for, model included.")
    ] = None,
    link_gbps: Annotated[
        float | None, real("--link-gbps", help="Slow host-to-device copies down to so many GB a second.")
    ] = None,
    disk_gbps: Annotated[float | None, real("--disk-gbps", help="Slow disk reads down to so many GB a second.")] = None,
    kv_dtype: KvDtypeOption = "auto",
    placement: PlacementOption = None,
    codec: CodecOption = "zstd",
    profile: ProfileOption = None,
    kv_dir: Annotated[
        Path | None, path("--kv-dir", help="Make the stores here; they are removed. Default: where tmp is.")
    ] = None,
    steps: Annotated[int, whole("--steps", help="Timed steps per contestant; a second turn adds a quarter.")] = 256,
    turn_tokens: Annotated[int, whole("--turn-tokens", help="Prompt tokens of the second turn.")] = 64,
    random_kv: Annotated[
        bool, typer.Option("--random-kv", help="Fill contexts with random numbers instead of prefilling them.")
    ] = False,
    prefetch: Annotated[str, typer.Option("--prefetch", help="As in chat; comma-separated.")] = "auto",
    breakdown: Annotated[
        bool, typer.Option("--breakdown", help="Say what each operation of a step took, its bytes, its speed.")
    ] = False,
    baselines: Annotated[
        str, typer.Option("--baselines", help="Of dense, offloaded, quantised, llama.cpp; all or none.")
    ] = "all",
    text: Annotated[
        Path | None, path("--text", help="Text to fill the context; default: the bundled document.")
    ] = None,
    out: Annotated[Path | None, path("--out", help="Also write the JSON here.")] = None,
    plot: Annotated[Path | None, path("--plot", help="Draw a picture here (.png, .svg, .pdf).")] = None,
    trace: Annotated[Path | None, path("--trace", help="Write a profiler's trace of a few steps here (.json).")] = None,
) -> None:
    """Decode speed over context, beside transformers and llama.cpp in the same run; correctness first."""
    from ..api.figures import to_json
    from ..bench.breakdown_plot import draw_breakdown
    from ..bench.options import BASELINES, BenchOptions, crossed
    from ..bench.plot import draw
    from ..bench.run import run_bench
    from ..process.pictures import check

    if plot is not None:
        check(plot)
    check_outputs(out, plot, trace)
    options = BenchOptions(
        model=model, shape=shape, layers=layers, device=device, dtype=dtype, weights=_names(weights),
        contexts=_counts("--contexts", contexts), batches=_counts("--batch", batch), indexes=_names(index),
        caps=crossed(_sizes(gpu_kv_gb), _sizes(host_kv_gb), _sizes(disk_kv_gb)),
        budget=int(budget) if float(budget).is_integer() else budget, gpu_memory_cap=gpu_memory_cap,
        link_gbps=link_gbps, disk_gbps=disk_gbps, kv_dtype=kv_dtype, codec=codec, profile=profile, kv_dir=kv_dir,
        placement=placement, steps=steps, turn_tokens=turn_tokens, random_kv=random_kv, prefetch=_names(prefetch),
        breakdown=breakdown, baselines={"all": BASELINES, "none": ()}.get(baselines, _names(baselines)), text=text,
        trace=trace,
    )  # fmt: skip
    result = run_bench(options, log=lambda line: print(line, file=sys.stderr))
    line = to_json(result, indent=2)
    deliveries = [partial(print, line, flush=True)]
    if out is not None:
        deliveries.append(partial(write_text, out, line + "\n"))
    if plot is not None:
        deliveries.append(partial(draw_breakdown if breakdown else draw, result, plot))
    deliver(deliveries)


def _names(listed: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in listed.split(","))


def _counts(option: str, listed: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in listed.split(","))
    except ValueError:
        raise ValueError(f"{option} is a comma-separated list of whole numbers, not {listed!r}") from None


def _sizes(listed: str | None) -> list[float | None]:
    """The sizes of one cap in GB; None alone where it is not given."""
    if listed is None:
        return [None]
    try:
        return [float(part) for part in listed.split(",")]
    except ValueError:
        raise ValueError(f"a cap is a comma-separated list of numbers of GB, not {listed!r}") from None
