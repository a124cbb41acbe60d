"""Whether a greedy question is answered alike on an empty store, again from the stored prompt, and after a restart.

    python examples/bench/same_answers.py [--before CHECKOUT] [--prompts 100] [--dtype bfloat16] [--out OUT.json]

Each prompt is a conversation of its own: a passage of a novel, of which no two begin alike, in one half of them read
as a document before the question, in the other in the question itself. `cold` has computed all of it, `warm` is a
second conversation in the same process, `restarted` one in a new process, over the same store. Prints how many replies
differ in any token.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
from pathlib import Path
from typing import Any

from builds import Build, make_builds, write_result

TEXT = Path(__file__).resolve().parent.parent / "northanger_abbey.txt"
QUESTION = "Who is spoken of here, and what happens?"
TOKENS, SHORTEST, LONGEST = 12, 40, 160
"""Of a reply; words of a passage."""


def passages(count: int) -> list[str]:
    words, draw = TEXT.read_text().split(), random.Random(23)
    lengths = [draw.randrange(SHORTEST, LONGEST) for _ in range(count)]
    starts = [draw.randrange(len(words) - LONGEST) for _ in range(count)]
    return [" ".join(words[start : start + length]) for start, length in zip(starts, lengths, strict=True)]


def work(role: str, store: str, model: str, dtype: str, count: int) -> None:
    """One process: every prompt once, or twice where it is the first."""
    from stratakv.runtime import KVConfig, Runtime

    kv = KVConfig(path=store, host_gb=1.0, disk_gb=8.0)
    with Runtime.load(model, device="cpu", dtype=dtype, kv=kv) as runtime:

        def ask(number: int, passage: str) -> dict[str, Any]:
            chat = runtime.chat(system=f"Passage {number}. Answer briefly.")
            if number % 2:
                chat.read_text(passage, "passage")
            text = QUESTION if number % 2 else f"{passage}\n\n{QUESTION}"
            reply = chat.send(text, max_new_tokens=TOKENS, ignore_eos=True)
            tokens = chat.num_tokens
            chat.close()
            return {"reply": reply.tokens, "computed": reply.timings.prompt_n, "tokens": tokens}

        for number, passage in enumerate(passages(count)):
            for _ in range(2 if role == "first" else 1):
                print(json.dumps(ask(number, passage)), flush=True)


def answers(build: Build, role: str, store: Path, asked: argparse.Namespace) -> list[dict[str, Any]]:
    process = build.start(
        __file__, "--role", role, "--store", str(store), "--model", asked.model, "--dtype", asked.dtype, "--prompts",
        str(asked.prompts),
    )  # fmt: skip
    text, _ = process.communicate()
    if process.returncode:
        raise SystemExit(f"{build.name} ended with {process.returncode}")
    return [json.loads(line) for line in text.splitlines()]


def measure(build: Build, scratch: Path, asked: argparse.Namespace) -> dict[str, Any]:
    store = scratch / f"{build.name}-kv"
    first = answers(build, "first", store, asked)
    cold, warm = first[::2], first[1::2]
    restarted = answers(build, "again", store, asked)
    for one, other in zip(cold, warm, strict=True):
        if other["computed"] >= one["computed"]:
            raise SystemExit(f"{build.name}: the second time nothing came from the store")

    def differ(some: list[dict[str, Any]], others: list[dict[str, Any]]) -> int:
        return sum(one["reply"] != other["reply"] for one, other in zip(some, others, strict=True))

    return {
        "commit": build.commit,
        "warm_differs_from_cold": differ(cold, warm),
        "restarted_differs_from_cold": differ(cold, restarted),
        "restarted_differs_from_warm": differ(warm, restarted),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--before", type=Path, help="another checkout, asked the same")
    parser.add_argument("--prompts", type=int, default=100)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--role", choices=["first", "again"], help=argparse.SUPPRESS)
    parser.add_argument("--store", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.role is not None:
        work(asked.role, asked.store, asked.model, asked.dtype, asked.prompts)
        return
    from stratakv.storage.files.scratch import scratch_folder

    with scratch_folder("bench") as folder:
        builds = make_builds(asked.before, folder)
        found = {build.name: measure(build, folder, asked) for build in builds}
    from stratakv.runtime.process.hardware import hardware

    result = {
        "command": "python " + " ".join(sys.argv),
        "hardware": {**hardware(), "load_average": os.getloadavg()[0]},
        "model": asked.model,
        "dtype": asked.dtype,
        "prompts": asked.prompts,
        "tokens_per_reply": TOKENS,
        "builds": found,
    }
    write_result(result, asked.out)


if __name__ == "__main__":
    main()
