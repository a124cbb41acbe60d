"""How long a new process takes: for commands that load no model, and to the first token of a short question.

    python examples/bench/startup.py [--before CHECKOUT] [--rounds 5] [--out OUT.json]

`--before` is another checkout, whose runs take turns with this one's. Each run is a process of its own, timed by this
one: to the first character of its output, and to its end. Files are warm: a round before the first is not counted.
Every build must give the same answers, else no time is reported; `--own-words` is for builds whose defaults for the
model differ, where each must agree with itself.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

from builds import HERE, Build, make_builds, write_result

RECALL = str(HERE / "tests/data/recall")
QUESTION = "What is the capital of France?"
SAVE = f"""
import sys
from stratakv.runtime import KVConfig, Runtime
with Runtime.load({RECALL!r}, kv=KVConfig(path=sys.argv[1], disk_gb=0.1)) as runtime:
    chat = runtime.chat()
    chat.send("k1 v2 ? k1", max_new_tokens=2)
    chat.save("one")
"""


def cases(build: Build, scratch: Path, run: int) -> dict[str, list[str]]:
    """What is timed; a question gets a store of its own each time, so that it is always read anew."""
    store = str(scratch / f"{build.name}-{run}")
    return {
        "--version": ["--version"],
        "plan --help": ["plan", "--help"],
        "sessions list": ["sessions", "list", "--kv-dir", str(scratch / f"{build.name}-saved")],
        "chat, 131,392 parameters": ["chat", "-m", RECALL, "--kv-dir", store, "-p", "k1 v2 ? k1", "-n", "3"],
        "chat, smollm2": ["chat", "-m", "smollm2", "--kv-dir", store, "-p", QUESTION, "-n", "8"],
    }


def timed(build: Build, arguments: list[str]) -> dict[str, Any]:
    """Seconds to the first character and to the end, processor seconds, and what was printed."""
    before, started = os.times(), time.perf_counter()
    process = build.start("-m", "stratakv.runtime", *arguments)
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.close()
    first = process.stdout.read(1)
    to_first = time.perf_counter() - started
    text = first + process.stdout.read()
    code = process.wait()
    ended, after = time.perf_counter() - started, os.times()
    cpu = after.children_user + after.children_system - before.children_user - before.children_system
    return {"first_s": to_first, "end_s": ended, "cpu_s": cpu, "text": text, "code": code}


def measure(builds: list[Build], rounds: int, scratch: Path) -> dict[str, dict[str, list[dict[str, Any]]]]:
    """Runs by case and build."""
    found: dict[str, dict[str, list[dict[str, Any]]]] = defaultdict(lambda: defaultdict(list))
    for build in builds:
        process = build.start("-c", SAVE, str(scratch / f"{build.name}-saved"))
        if process.wait():
            raise SystemExit(f"{build.checkout}: no session could be saved")
    for turn in range(-1, rounds):
        for name in cases(builds[0], scratch, turn):
            for build in builds:
                run = timed(build, cases(build, scratch, turn)[name])
                if turn >= 0:
                    found[name][build.name].append(run)
                    print(
                        f"{turn} {name:25} {build.name:6} first {run['first_s']:6.2f} s, end {run['end_s']:6.2f} s, "
                        f"processor {run['cpu_s']:6.2f} s",
                        file=sys.stderr,
                    )
    return found


def check(found: dict[str, dict[str, list[dict[str, Any]]]], own_words: bool) -> None:
    """Every run must have ended well, those of older builds without `--version` aside, and chats must agree."""
    for name, by_build in found.items():
        for build, runs in by_build.items():
            failed = [run for run in runs if run["code"]]
            if failed and not (name == "--version" and len(failed) == len(runs)):
                raise SystemExit(f"{name}: {build} failed: no time is reported")
        said = [{run["text"] for run in runs} for runs in by_build.values()]
        if name.startswith("chat") and (max(map(len, said)) > 1 or (not own_words and len(set.union(*said)) > 1)):
            raise SystemExit(f"{name}: answers differ: no time is reported")


def summary(runs: list[dict[str, Any]]) -> dict[str, Any]:
    if runs[0]["code"]:
        return {"missing": True}
    names = ("first_s", "end_s", "cpu_s")
    return {
        **{name: round(statistics.median(run[name] for run in runs), 3) for name in names},
        "runs": [{name: round(run[name], 3) for name in names} for run in runs],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--before", type=Path, help="another checkout, timed in turn with this one")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--own-words", action="store_true", help="builds may answer differently, each always the same")
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    from stratakv.storage.files.scratch import scratch_folder  # a child of an earlier build has it elsewhere

    with scratch_folder("bench") as folder:
        builds = make_builds(asked.before, Path(folder))
        load = os.getloadavg()[0]
        found = measure(builds, asked.rounds, Path(folder))
        commits = {build.name: build.commit for build in builds}
    check(found, asked.own_words)
    from stratakv.runtime.process.hardware import hardware

    result = {
        "command": "python " + " ".join(sys.argv),
        "hardware": {**hardware(), "load_average": load},
        "commits": commits,
        "rounds": asked.rounds,
        "answers": {
            name: {build: runs[0]["text"].strip() for build, runs in by.items()}
            for name, by in found.items()
            if name.startswith("chat")
        },
        "cases": {name: {build: summary(runs) for build, runs in by.items()} for name, by in found.items()},
    }
    write_result(result, asked.out)


if __name__ == "__main__":
    main()
