"""What another busy process costs: decode and prefill alone, beside one endless loop, and beside two.

    python examples/bench/busy.py [--before CHECKOUT] [--rounds 3] [--out OUT.json]

A process per build has the model loaded and waits; they take turns, round by round, each alone with the loops. Nothing
is set in their environment: how OpenMP's threads wait, and how many there are, is what the build chooses. `--before` is
another checkout. Decode goes on in a real text, token by known token; builds that hardly ever think the same token
likeliest are not compared. A turn of decode ends after some seconds, so that a slow build does not take the whole time.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from builds import Build, make_builds, write_result

TEXT = Path(__file__).resolve().parent.parent / "northanger_abbey.txt"
CONTEXT, PROMPT, STEPS, LONGEST_S = 1024, 256, 32, 6.0
LOOPS = (0, 1, 2)
_AGREED = 0.9
"""The least share of steps in which all builds must think the same token likeliest. They round differently."""
LOOP = "print(flush=True)\nwhile True: pass"
"""Says when it begins."""


class Worker:
    """One build's model, in this process. It reads what to do from its input, a word a line, and answers in JSON."""

    def __init__(self, store: str, model: str) -> None:
        import numpy as np

        from stratakv.runtime import KVConfig, Runtime  # before torch, as a program that imports us would

        self.runtime = Runtime.load(
            model, device="cpu", kv=KVConfig(path=store, disk_gb=0, index="bounds", budget=1024)
        )
        ids = self.runtime.tokenizer(TEXT.read_text()).input_ids
        self.ids = np.array(ids, dtype=np.uint32)
        self.sequence = self.runtime.engine.new_sequence()
        self.runtime.engine.prefill(self.sequence, self.ids[:CONTEXT])
        self.likeliest: list[int] = []
        self.prompts = 0

    def decode(self) -> dict[str, Any]:
        found: list[float] = []
        begun = time.perf_counter()
        while len(found) < STEPS and time.perf_counter() - begun < LONGEST_S:
            known = int(self.ids[CONTEXT + len(self.likeliest)])
            started = time.perf_counter()
            self.likeliest.append(int(self.runtime.engine.decode([self.sequence], [known])[0].argmax()))
            found.append(time.perf_counter() - started)
        return {"seconds": found}

    def prefill(self) -> dict[str, Any]:
        self.prompts += 1
        start = CONTEXT + self.prompts * PROMPT // 4  # never the same tokens, so that no page is adopted
        sequence = self.runtime.engine.new_sequence()
        started = time.perf_counter()
        done = self.runtime.engine.prefill(sequence, self.ids[start : start + PROMPT])
        seconds = time.perf_counter() - started
        sequence.close()
        if done.num_computed != PROMPT:
            raise SystemExit(f"{PROMPT - done.num_computed} tokens of the prompt were not computed")
        return {"seconds": [seconds]}

    def end(self) -> dict[str, Any]:
        import torch

        threads = torch.get_num_threads()
        return {"likeliest": self.likeliest, "threads": threads, "dtype": str(self.runtime.model.dtype)}

    def serve(self) -> None:
        print(json.dumps({"ready": True}), flush=True)
        for line in sys.stdin:
            print(json.dumps(getattr(self, line.strip())()), flush=True)


def ask(process: subprocess.Popen[str], word: str | None = None) -> dict[str, Any]:
    assert process.stdin is not None
    assert process.stdout is not None
    if word is not None:
        process.stdin.write(word + "\n")
        process.stdin.flush()
    answer = process.stdout.readline()
    if not answer:
        raise SystemExit(f"a build ended with {process.wait()}")
    found: dict[str, Any] = json.loads(answer)
    return found


@contextmanager
def loops(count: int) -> Iterator[None]:
    """So many busy processes, running when the block begins."""
    processes = [subprocess.Popen([sys.executable, "-c", LOOP], stdout=subprocess.PIPE) for _ in range(count)]
    try:
        for process in processes:
            assert process.stdout is not None
            process.stdout.readline()
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


def measure(builds: list[Build], rounds: int, model: str, scratch: Path) -> dict[str, Any]:
    """Seconds by build, work and number of loops; what each build chose and said."""
    found: dict[str, Any] = {build.name: {"decode": {}, "prefill": {}} for build in builds}
    with ExitStack() as stack:
        workers = {}
        for build in builds:
            process = build.start(__file__, "--worker", str(scratch / f"{build.name}-kv"), "--model", model)
            stack.callback(process.kill)
            ask(process)
            workers[build.name] = process
        for turn in range(rounds):
            for count in LOOPS:
                for build in builds:
                    for work in ("decode", "prefill"):
                        with loops(count):
                            seconds = ask(workers[build.name], work)["seconds"]
                        found[build.name][work].setdefault(count, []).extend(seconds)
                        middle = 1e3 * statistics.median(seconds)
                        print(f"{turn} beside {count}: {build.name:6} {work:7} {middle:8.1f} ms", file=sys.stderr)
        for build in builds:
            found[build.name]["end"] = ask(workers[build.name], "end")
    return found


def summary(found: dict[str, Any]) -> dict[str, Any]:
    """Medians of one build, and what each costs against the same alone."""
    rows = []
    for work, scale, unit in (("decode", 1e3, "ms_per_token"), ("prefill", 1.0, "s_per_prompt")):
        alone = statistics.median(found[work][0])
        for count, seconds in found[work].items():
            middle = statistics.median(seconds)
            row: dict[str, Any] = {"work": work, "busy_processes": count, unit: round(scale * middle, 3)}
            if work == "prefill":
                row["tokens_per_s"] = round(PROMPT / middle, 1)
            rows.append({**row, "of_alone": round(middle / alone, 2), "samples": len(seconds)})
    return {"threads": found["end"]["threads"], "dtype": found["end"]["dtype"], "rows": rows}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--before", type=Path, help="another checkout, measured in turn with this one")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--worker", metavar="STORE", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.worker is not None:
        Worker(asked.worker, asked.model).serve()
        return
    from stratakv.storage.files.scratch import scratch_folder  # a child of an earlier build has it elsewhere

    with scratch_folder("bench") as folder:
        builds = make_builds(asked.before, Path(folder))
        load = os.getloadavg()[0]
        found = measure(builds, asked.rounds, asked.model, Path(folder))
        commits = {build.name: build.commit for build in builds}
    said = list(zip(*(found[build.name]["end"]["likeliest"] for build in builds), strict=False))
    agreed = sum(len(set(tokens)) == 1 for tokens in said) / len(said)
    if agreed < _AGREED:
        raise SystemExit(f"the builds agree in {agreed:.0%} of {len(said)} steps only: no time is reported")
    from stratakv.runtime.process.hardware import hardware

    result = {
        "command": f"python examples/bench/busy.py --rounds {asked.rounds}"
        + (" --before CHECKOUT" if asked.before else ""),
        "hardware": {**hardware(), "load_average": load},
        "commits": commits,
        "model": asked.model,
        "context": CONTEXT,
        "prompt": PROMPT,
        "rounds": asked.rounds,
        "agreed": round(agreed, 3),
        "steps_compared": len(said),
        "builds": {build.name: summary(found[build.name]) for build in builds},
    }
    write_result(result, asked.out)


if __name__ == "__main__":
    main()
