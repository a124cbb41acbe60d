"""What a restart costs: read a document, save, end the process, resume in a new one.

    python examples/bench/restart.py [OUT.json]

Prints one JSON object. The resumed process must go on with the very tokens of the process that never
stopped, or no time is reported.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from stratakv.storage.files.scratch import scratch_folder

DOCUMENT = Path(__file__).parents[1] / "northanger_abbey.txt"
MODEL = "smollm2"
QUESTION = "What is the shelf mark of this copy?"


def child(role: str, store: str) -> None:
    """One process: `first` reads and saves, `resumed` loads; both then ask and print."""
    from stratakv.runtime import KVConfig, Runtime

    with Runtime.load(MODEL, kv=KVConfig(path=store, index="bounds", budget=1024)) as runtime:
        found: dict[str, Any] = {}
        started = time.perf_counter()
        if role == "first":
            chat = runtime.chat()
            read = chat.read(DOCUMENT)
            found |= {"document_tokens": read.tokens, "cached": read.cached, "prefill_s": read.ms / 1000}
            chat.save("restart")
        elif role == "resumed":
            chat = runtime.chat(session="restart")
            found |= {"restored_tokens": chat.restored, "computed_again": chat.num_tokens - chat.restored}
        else:
            chat = runtime.chat()
            read = chat.read(DOCUMENT)
            found |= {"document_tokens": read.tokens, "cached": read.cached, "read_s": read.ms / 1000}
        found["load_s"] = time.perf_counter() - started
        reply = chat.send(QUESTION, max_new_tokens=64, ignore_eos=True)
        assert reply.timings.ttft_ms is not None
        found |= {"tokens": reply.tokens, "text": reply.text, "question_ttft_s": reply.timings.ttft_ms / 1000}
        found |= {"prompt_n": reply.timings.prompt_n, "cache_n": reply.timings.cache_n}
        runtime.store.flush()
    print(json.dumps(found))


def run(role: str, store: str) -> dict[str, Any]:
    done = subprocess.run([sys.executable, __file__, role, store], stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def main(out: str | None) -> None:
    from stratakv.runtime.process.hardware import hardware

    with scratch_folder("bench") as store:
        first, resumed, second = (run(role, str(store)) for role in ("first", "resumed", "second conversation"))
    if resumed["tokens"] != first["tokens"] or resumed["computed_again"]:
        raise SystemExit("the resumed process went on differently: no time is reported")
    resumed_ttft = resumed["load_s"] + resumed["question_ttft_s"]
    result = {
        "command": "python examples/bench/restart.py",
        "hardware": hardware(),
        "model": MODEL,
        "document_tokens": first["document_tokens"],
        "first_prefill_s": first["prefill_s"],
        "resumed_prefilled_tokens": resumed["computed_again"],
        "resumed_ttft_s": resumed_ttft,
        "ttft_over_prefill": resumed_ttft / first["prefill_s"],
        "identical_tokens": len(first["tokens"]),
        "second_conversation_prefilled_tokens": second["document_tokens"] - second["cached"],
        "second_conversation_read_s": second["read_s"],
        "reply": first["text"],
    }
    text = json.dumps(result, indent=2)
    print(text)
    if out:
        Path(out).write_text(text + "\n")


if __name__ == "__main__":
    if len(sys.argv) == 3:
        child(sys.argv[1], sys.argv[2])
    else:
        main(sys.argv[1] if len(sys.argv) == 2 else None)
