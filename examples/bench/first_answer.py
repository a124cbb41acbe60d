"""The first answer of a build that has no caches yet, the next process's, and the most memory each of them held.

    python examples/bench/first_answer.py [--before CHECKOUT] [--rounds 3] [--out OUT.json]

A round gives each build a cache folder of its own, and asks three times in a process of its own: first, where the model
is converted or its decode compiled if the build does such things; again; and about a document of some 7,000 tokens.
Nothing else is set in the environment. Answers are not compared: the builds' default weights differ.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from builds import HERE, Build, make_builds, write_result

QUESTION = ["-p", "What is the capital of France?", "-n", "8"]
DOCUMENT = ["-f", str(HERE / "examples/northanger_abbey.txt"), "-p", "What is the shelf mark of this copy?"]
ASKED = {"first": QUESTION, "again": QUESTION, "document": DOCUMENT}


def ask(build: Build, cache: Path, arguments: list[str]) -> dict[str, float]:
    """Seconds until the process has answered and ended, and the most megabytes it held."""
    environment = build.environment() | {"XDG_CACHE_HOME": str(cache)}
    started = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-m", "stratakv.runtime", "chat", *arguments], env=environment, cwd=HERE,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - started
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{build.name} ended with {process.returncode}")
    return {"seconds": seconds, "peak_mb": usage.ru_maxrss / 1e3}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--before", type=Path, help="another checkout")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    from stratakv.runtime.process.hardware import hardware

    found: dict[tuple[str, str], list[dict[str, float]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        builds = make_builds(options.before, Path(folder) / "builds")
        commits = {build.name: build.commit for build in builds}
        for number in range(options.rounds):
            for build in builds:
                for what, arguments in ASKED.items():
                    figures = ask(build, Path(folder) / f"{build.name}-{number}", arguments)
                    found.setdefault((build.name, what), []).append(figures)
                    print(build.name, what, figures, file=sys.stderr, flush=True)
    rows: list[dict[str, Any]] = [
        {"build": name, "asked": what}
        | {key: round(statistics.median(one[key] for one in each), 1) for key in ("seconds", "peak_mb")}
        for (name, what), each in found.items()
    ]
    command = f"python examples/bench/first_answer.py --rounds {options.rounds}"
    if options.before is not None:
        command += " --before CHECKOUT"
    write_result({"command": command, "hardware": hardware(), "commits": commits, "rows": rows}, options.out)


if __name__ == "__main__":
    main()
