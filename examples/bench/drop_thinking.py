"""What a conversation keeps and computes with `drop_thinking` and without, when a template leaves out earlier thinking.

    python examples/bench/drop_thinking.py --out docs/results/drop_thinking_smollm2_cpu.json

The model is SmolLM2 with such a template; what it "says" is given, so that both conversations say the same.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from pathlib import Path
from typing import Any
from unittest.mock import patch

from builds import write_result

from stratakv.runtime import KVConfig, Runtime
from stratakv.runtime.engine.sampling import Sampler
from stratakv.runtime.process.hardware import hardware

TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' and not loop.last %}"
    "{{ m.content.split('</think>')[-1].lstrip('\n') }}{% else %}{{ m.content }}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
QUESTIONS = ("Who hid the letter?", "Are you sure?", "And where is it now?")
THOUGHT = "The keeper had the key to the drawer, and nobody else was in the house that night. "
ANSWER = "The keeper hid the letter, since he alone had the key."


def conversation(runtime: Runtime, *, drop: bool, thoughts: int) -> list[dict[str, Any]]:
    """A row for each turn."""
    chat, rows = runtime.chat(), []
    text = f"<think>\n{THOUGHT * thoughts}\n</think>\n\n{ANSWER}"
    script: list[int] = []
    for question in QUESTIONS:
        script[:] = [*runtime.tokenizer(text, add_special_tokens=False).input_ids, runtime.tokenizer.eos_token_id]
        with patch.object(Sampler, "choose", lambda *_: script.pop(0)):
            reply = chat.send(question, max_new_tokens=2000, max_repeats=0, drop_thinking=drop)
        rows.append({
            "prompt_tokens": reply.usage.prompt_tokens, "read": reply.timings.prompt_n,
            "read_ms": round(reply.timings.prompt_ms, 1),
            "step_ms": round(reply.timings.predicted_ms / max(1, reply.timings.step_n), 2),
            "kept_tokens": chat.num_tokens + len(chat._unfed),
        })  # fmt: skip
    chat.close()
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--thoughts", type=int, default=8, help="sentences of thinking in a reply")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        kv = KVConfig(path=folder, index="dense", host_gb=0.5, disk_gb=0)
        with Runtime.load("smollm2", device="cpu", kv=kv) as runtime:
            runtime.tokenizer.chat_template = TEMPLATE
            runtime.generate("Once upon a time", max_new_tokens=8)  # what comes first is slower
            found = {
                name: conversation(runtime, drop=drop, thoughts=options.thoughts)
                for name, drop in (("kept", False), ("dropped", True))
            }
    command = f"python examples/bench/drop_thinking.py --thoughts {options.thoughts} --out OUT.json"
    load = round(os.getloadavg()[0], 1)
    write_result(
        {"command": command, "hardware": {**hardware(), "load_average": load}, "model": "smollm2", **found}, options.out
    )


if __name__ == "__main__":
    main()
