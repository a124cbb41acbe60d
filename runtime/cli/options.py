"""Options that several commands of the console share."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from ..api.typed_numbers import whole_number


def whole(*flags: str, help: str) -> Any:
    """An option whose value is a whole number; `1e3` is one."""
    return typer.Option(*flags, help=help, metavar="N", parser=reading(whole_number))


def real(*flags: str, help: str) -> Any:
    """An option whose value is a number."""
    return typer.Option(*flags, help=help, metavar="X", parser=reading(_any_number))


def path(*flags: str, help: str) -> Any:
    """An option whose value is a path; `~` is the home folder."""
    return typer.Option(*flags, help=help, metavar="PATH", parser=reading(lambda text: Path(at_home(text))))


def reading(read: Callable[[str], Any]) -> Callable[[Any], Any]:
    """Make a parser of one option: an error of `read` becomes the command's line."""

    def parse(value: Any) -> Any:
        if not isinstance(value, str):  # the default
            return value
        try:
            return read(value)
        except ValueError as error:
            raise typer.BadParameter(str(error)) from None

    return parse


def _any_number(text: str) -> float:
    """Read any number, `inf` and `nan` too: the receiver of the number says better what it may be."""
    try:
        return float(text)
    except ValueError:
        raise ValueError(f"a number, not {text!r}") from None


def at_home(text: str) -> str:
    """A path with `~` as the home folder. Raises ValueError if there is no such folder."""
    found = os.path.expanduser(text)
    if found.startswith("~") and not os.path.lexists(found):
        raise ValueError(f"there is no home folder for {text!r}")
    return found


ModelOption = Annotated[
    str,
    typer.Option(
        "-m", "--model", metavar="MODEL", parser=reading(at_home), help="Alias, hub id, model directory or .gguf file."
    ),
]
DeviceOption = Annotated[str, typer.Option("--device", help="auto, cpu, cuda or cuda:N.")]
DtypeOption = Annotated[str, typer.Option("--dtype", help="auto, float32, bfloat16 or float16.")]
WeightsOption = Annotated[
    str,
    typer.Option(
        "--weights",
        help="What decode multiplies with: file (a GGUF file's as they are, on a CPU), own, int8 (lossy), int4 (lossy, "
        "on a GPU); auto: file where it can be.",
    ),
]
GpuOption = Annotated[
    float | None,
    real("--gpu-kv-gb", help="Cap of the device tier in GB (10^9 bytes). Default: free GPU memory."),
]
HostOption = Annotated[
    float | None, real("--host-kv-gb", help="Cap of the host tier in GB. Default: half of free memory.")
]
DiskOption = Annotated[
    float | None,
    real(
        "--disk-kv-gb",
        help="Cap of the whole store folder in GB; 0: no disk. Default: half of what the disk has free and the store "
        "holds, at most 64.",
    ),
]
PathOption = Annotated[Path | None, path("--kv-dir", help="Store folder. Default: the user's cache directory.")]
IndexOption = Annotated[
    str, typer.Option("--index", help="How tokens are found: auto, spectral, bounds, ..., or name:setting=value.")
]
PlacementOption = Annotated[
    str | None,
    typer.Option(
        "--placement",
        help="Which tokens are worth a place near: snapkv, h2o, ..., or snapkv:keep=0.1,mode=hot. In the mode visible, "
        "the default, steps read what is kept and nothing else.",
    ),
]
KvDtypeOption = Annotated[str, typer.Option("--kv-dtype", help="Element type of the cache; auto: the model's.")]
CodecOption = Annotated[
    str,
    typer.Option(
        "--codec",
        help="How pages are written to disk: zstd, raw (lossless); int8, int4, kivi, rotatekv, logquant, zipcache, "
        "kvquant, adaptive (lossy), or name:setting=value.",
    ),
]
PrefetchOption = Annotated[
    str,
    typer.Option("--prefetch", help="Move what is read soon ahead of time: on, off; auto: where it is seen to pay."),
]
StateEveryOption = Annotated[
    int | None,
    whole(
        "--state-every",
        help="Tokens between states that sliding and recurrent layers leave in a prompt for other conversations; 0: at "
        "its end only. Default: as many as add at most a quarter to the pages on disk.",
    ),
]
ProfileOption = Annotated[
    Path | None, path("--profile", help="What calibrate wrote with --out. Default: where calibrate puts it.")
]
BudgetOption = Annotated[
    float, real("--budget", help="Tokens read per KV head and step; below 1: share of the context.")
]


def kv_config(**options: Any) -> Any:
    """Make a `KVConfig`. Raises ValueError if a number is out of range, or beyond this machine."""
    from ..api.config import KVConfig
    from ..engine.machine_caps import check_caps

    budget = options.pop("budget")
    config = KVConfig(budget=int(budget) if float(budget).is_integer() else budget, **options)
    check_caps(config)
    return config
