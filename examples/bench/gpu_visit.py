"""Everything that needs a CUDA device, in one short visit: the most telling pieces first, none over its time.

    python examples/bench/gpu_visit.py [--only tests,128k] [--minutes 10] [--out FOLDER] [--device cuda]
        [--shape llama-3.1-8b] [--card 24] [--host 90] [--more 'OPTIONS OF EVERY BENCHMARK']

Each piece is a process of its own. What it gave is written at once, so a visit that is cut short loses one piece; a
piece that fails or takes too long is noted, and the next one begins. A piece is left out if its time would not end
within the visit. `visit.json` has all results, `visit.log` what they printed, `visit.md` a table, `128k.trace.json` the
profiler's trace. Nothing is downloaded; tests run side by side where pytest-xdist is installed.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

HERE = Path(__file__).resolve().parents[2]
_TAIL = 4000
"""Characters of what a piece printed that its result keeps."""


class Piece(NamedTuple):
    """A name, what is run, and the seconds that it may take."""

    name: str
    command: list[str]
    limit_s: int = 90


def pieces(asked: argparse.Namespace, out: Path) -> list[Piece]:
    """All of them, in order."""

    def bench(name: str, *options: str, limit_s: int = 90, before: tuple[str, ...] = ()) -> Piece:
        command = [
            *before, sys.executable, "-m", "stratakv.runtime", "bench",
            "--device", asked.device, "--shape", asked.shape,
            "--gpu-memory-cap", str(asked.card), "--index", "spectral", "--budget", "2048", "--random-kv",
            "--disk-kv-gb", "0", "--out", str(out / f"{name}.json"), *options, *shlex.split(asked.more),
        ]  # fmt: skip
        return Piece(name, command, limit_s)

    pytest = [sys.executable, "-m", "pytest", "-q", *(["-n", "8"] if find_spec("xdist") else [])]
    long = ("--contexts", "131072", "--host-kv-gb", "24")
    return [
        Piece("tests", [*pytest, "-m", "gpu"], 120),
        bench("128k", *long, "--baselines", "none"),
        bench("128k-before", *long, "--baselines", "none", "--steps", "8", before=("env", "STRATAKV_RESIDENT=0")),
        bench("128k-offloaded", *long, "--baselines", "offloaded", "--steps", "16"),
        bench("128k-batch", *long, "--batch", "4", "--baselines", "none", "--host-kv-gb", str(asked.host)),
        bench("32k", "--contexts", "32768", "--host-kv-gb", "16", "--baselines", "dense"),
        bench("128k-disk", *long, "--host-kv-gb", "9", "--disk-kv-gb", "24", "--codec", "raw", "--baselines", "none"),
        bench("1m", "--layers", "16", "--contexts", "1048576", "--host-kv-gb", str(asked.host), "--baselines", "none"),
        bench("128k-int4", *long, "--baselines", "none", "--weights", "int4"),
        bench("trace", *long, "--baselines", "none", "--steps", "16", "--trace", str(out / "128k.trace.json")),
    ]


def visit(chosen: list[Piece], out: Path, seconds: float) -> list[dict[str, Any]]:
    """Run them one after another, for so many seconds in all, and keep what each gave."""
    ends, done = time.monotonic() + seconds, list[dict[str, Any]]()
    for piece in chosen:
        if time.monotonic() + piece.limit_s > ends:
            done.append({"name": piece.name, "state": "left out: there was no time for it"})
        else:
            done.append(_run(piece, out))
        print(f"{piece.name:16} {done[-1]['state']}", flush=True)
        (out / "visit.json").write_text(json.dumps({"pieces": done}, indent=1) + "\n")
    return done


def _run(piece: Piece, out: Path) -> dict[str, Any]:
    began, log = time.monotonic(), out / "visit.log"
    with log.open("a") as printed:
        print(f"--- {piece.name}: {shlex.join(piece.command)}", file=printed, flush=True)
        before = log.stat().st_size
        environment = {**os.environ, "PYTHONPATH": str(HERE / "build" / "gpu")}
        process = subprocess.Popen(
            piece.command, stdout=printed, stderr=printed, cwd=HERE, env=environment, start_new_session=True
        )
        try:
            status: int | None = process.wait(piece.limit_s)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            status = None
    took, result = time.monotonic() - began, out / f"{piece.name}.json"
    state = f"over its {piece.limit_s} s" if status is None else "done" if status == 0 else f"failed with {status}"
    found = {"name": piece.name, "state": state, "took_s": round(took, 1), "command": shlex.join(piece.command)}
    found["printed"] = log.read_text()[before:][-_TAIL:]
    if result.is_file():
        found["result"] = json.loads(result.read_text())
        result.unlink()
    return found


def summary(done: list[dict[str, Any]]) -> Iterator[str]:
    """A line for each piece, or for each contestant of a benchmark."""
    yield "| piece | contestant | ms a step | tokens/s | TTFT, second turn, s | took, s |"
    yield "|---|---|---|---|---|---|"
    for piece in done:
        took = piece.get("took_s", "-")
        if "result" not in piece:
            last = (piece.get("printed", "").strip().splitlines() or ["-"])[-1]
            yield f"| {piece['name']} | {piece['state']}: {last} | - | - | - | {took} |"
            continue
        for row in piece["result"]["rows"]:
            for one in row["contestants"]:
                first, second = one["first_turn"], one["second_turn"]
                yield (
                    f"| {piece['name']} | {one['name']} | {first['tpot_ms_p50']:.1f} | {first['tokens_per_s']:.1f} | "
                    f"{second['ttft_s']:.2f} | {took} |"
                )
            for name, why in row["left_out"].items():
                yield f"| {piece['name']} | {name}: {why} | - | - | - | {took} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="comma-separated names of pieces")
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--out", type=Path, default=HERE / "docs" / "results" / "gpu")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--shape", default="llama-3.1-8b")
    parser.add_argument("--card", type=float, default=24, help="GB of device memory that may be used")
    parser.add_argument("--host", type=float, default=90, help="GB of host memory for the longest contexts")
    parser.add_argument("--more", default="", help="options of every benchmark, behind its own")
    asked = parser.parse_args()
    asked.out.mkdir(parents=True, exist_ok=True)
    out = asked.out.resolve()
    every = pieces(asked, out)
    only = [name.strip() for name in asked.only.split(",") if name.strip()] or [piece.name for piece in every]
    unknown = set(only) - {piece.name for piece in every}
    if unknown:
        parser.error(f"no piece {', '.join(sorted(unknown))}; known: {', '.join(piece.name for piece in every)}")
    (out / "visit.log").write_text("")
    done = visit([piece for piece in every if piece.name in only], out, 60 * asked.minutes)
    lines = "\n".join(summary(done)) + "\n"
    (out / "visit.md").write_text(lines)
    print(lines, end="")
    if any(piece["state"] != "done" for piece in done):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
