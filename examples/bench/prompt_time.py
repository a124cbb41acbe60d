"""How long a prompt takes to read, index and all, beside an earlier build: the same prompts, taking turns.

    python examples/bench/prompt_time.py [--before CHECKOUT] [--model smollm2] [--lengths 300,1000,4000]
        [--indexes bounds,spectral] [--rounds 5] [--out OUT.json]

Each build has a process of its own for each index, ready before anything is timed. A round gives every one of them the
same new prompt in turn; a figure is the median over rounds of the seconds until its last logits are there. These do not
depend on the index, and must be the same to the bit: otherwise nothing is reported.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from builds import HERE, Build, make_builds, write_result

TEXT = HERE / "examples" / "northanger_abbey.txt"
CHILD = f"""
import hashlib, sys, time
import numpy as np
from stratakv.runtime import KVConfig, Runtime

model, index, folder = sys.argv[1:]
with Runtime.load(model, device="cpu", kv=KVConfig(path=folder, index=index, disk_gb=0)) as runtime:
    ids = np.array(runtime.tokenizer(open({str(TEXT)!r}).read()).input_ids, dtype=np.uint32)
    print("ready", flush=True)
    for line in sys.stdin:
        begin, count = map(int, line.split())
        sequence = runtime.engine.new_sequence()
        began = time.perf_counter()
        logits = runtime.engine.prefill(sequence, ids[begin : begin + count], reuse=False).logits
        took = time.perf_counter() - began
        sequence.close()
        print(took, hashlib.blake2b(logits.numpy().tobytes(), digest_size=8).hexdigest(), flush=True)
"""


class Reader:
    """A build that reads prompts."""

    def __init__(self, build: Build, model: str, index: str, scratch: Path) -> None:
        self.build, self.index = build.name, index
        folder = scratch / f"{build.name}-{index}"
        self._process = build.start("-c", CHILD, model, index, str(folder))
        self._answer()

    def read(self, begin: int, count: int) -> tuple[float, str]:
        """Seconds, and what tells its logits from others."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{begin} {count}\n")
        self._process.stdin.flush()
        took, digest = self._answer().split()
        return float(took), digest

    def _answer(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"{self.build} {self.index}: ended with {self._process.wait()}")
        return line

    def close(self) -> None:
        try:
            self._process.communicate(timeout=60)
        except subprocess.TimeoutExpired:
            self._process.kill()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--before", type=Path)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--lengths", default="300,1000,4000")
    parser.add_argument("--indexes", default="bounds,spectral")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    lengths = [int(length) for length in asked.lengths.split(",")]
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        builds = make_builds(asked.before, scratch)
        sides = itertools.product(asked.indexes.split(","), builds)
        readers = [Reader(build, asked.model, index, scratch) for index, build in sides]
        took: dict[tuple[int, Reader], list[float]] = {}
        for number, length in itertools.product(range(asked.rounds + 1), lengths):
            found = [(reader, *reader.read(37 * number, length)) for reader in readers]
            if len({digest for *_, digest in found}) > 1:
                raise SystemExit(f"logits after {length} tokens differ: {found}")
            for reader, seconds, _ in found if number else []:  # a first round compiles and is not counted
                took.setdefault((length, reader), []).append(seconds)
        for reader in readers:
            reader.close()
    rows: list[dict[str, Any]] = [
        {"tokens": length, "index": reader.index, "build": reader.build, "prompt_s": round(statistics.median(each), 4)}
        for (length, reader), each in took.items()
    ]
    from stratakv.runtime.process.hardware import hardware

    commits = {build.name: build.commit for build in builds}
    command = "python " + " ".join(sys.argv)
    write_result({"command": command, "hardware": hardware(), "builds": commits, "rows": rows}, asked.out)


if __name__ == "__main__":
    main()
