"""Whether replies end by themselves: 20 questions, the document in a turn of its own or in the question's.

    python examples/bench/stops.py [OUT.json]

Prints a table, and writes every reply with `OUT.json`. A reply counts as right if it contains the answer.
"""

from __future__ import annotations

import json
import re
import statistics
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stratakv.storage.files.scratch import scratch_folder

if TYPE_CHECKING:
    from stratakv.runtime import Chat, Runtime

DOCUMENT = Path(__file__).parents[1] / "northanger_abbey.txt"
MODEL = "smollm2"
LIMIT = 96

ABOUT_THE_DOCUMENT = (
    (("What is the shelf mark of this copy?", "4827"), ("And who bound it?", "Fenwick")),
    (("Who bound this copy in green leather?", "Fenwick"),),
    (("Where did the reader read this chapter aloud?", "garden"), ("On which day?", "ninth of June|June 9")),
    (("What colour is the leather that this copy is bound in?", "green"),),
    (("What is the name of Catherine's father?", "Richard"),),
    (("How many children are there in the Morland family?", "ten|10"),),
    (("What is the name of the young man who dances with Catherine in the Lower Rooms?", "Tilney"),),
    (("In which street in Bath do they take lodgings?", "Pulteney"),),
    (("How many guineas did Catherine's father give her?", "ten|10"),),
    (("Who wrote this book?", "Austen"), ("Who is the heroine of it?", "Catherine")),
    (("On which day was the chapter read aloud in the garden?", "ninth of June|June 9"),),
    (("What did a yard of Mrs. Allen's favourite gown cost?", "(nine|9) shillings"),),
)
WITHOUT_IT = (
    (("Say hello.", "hello|hi"),),
    (("Count to five.", "five|5"),),
    (("What is the capital of France?", "Paris"), ("And of Italy?", "Rome")),
    (("Name three colours of the rainbow.", "red|orange|yellow|green|blue|indigo|violet"),),
)
"""Conversations: questions and what a right answer contains, as regular expressions of whole words."""

SETTINGS: dict[str, tuple[bool, dict[str, Any]]] = {
    "question's turn, greedy": (False, {"max_repeats": 0}),
    "question's turn, repetition_penalty 1.1": (False, {"max_repeats": 0, "repetition_penalty": 1.1}),
    "own turn, greedy": (True, {"max_repeats": 0}),
    "own turn, repetition_penalty 1.1": (True, {"max_repeats": 0, "repetition_penalty": 1.1}),
    "own turn, ended when it repeats (default)": (True, {}),
}
"""Whether the document is a turn of its own, and how tokens are chosen."""


def main(out: str | None) -> None:
    from stratakv.runtime import KVConfig, Runtime
    from stratakv.runtime.process.hardware import hardware

    with (
        scratch_folder("bench") as store,
        Runtime.load(MODEL, kv=KVConfig(path=store)) as runtime,
    ):
        started = time.perf_counter()
        reader = runtime.chat()
        tokens = reader.read(DOCUMENT).tokens
        results = {name: _measure(runtime, reader, *setting) for name, setting in SETTINGS.items()}
    result = {
        "command": "python examples/bench/stops.py",
        "hardware": hardware(),
        "model": MODEL,
        "document_tokens": tokens,
        "max_new_tokens": LIMIT,
        "seconds": round(time.perf_counter() - started),
        "settings": results,
    }
    print(_table(results))
    if out:
        Path(out).write_text(json.dumps(result, indent=1) + "\n")


def _measure(runtime: Runtime, reader: Chat, is_own_turn: bool, generation: dict[str, Any]) -> dict[str, Any]:
    replies = []
    for about_it in (True, False):
        for conversation in ABOUT_THE_DOCUMENT if about_it else WITHOUT_IT:
            chat = reader.fork() if about_it and is_own_turn else runtime.chat()
            for number, (question, answer) in enumerate(conversation):
                pasted = about_it and not is_own_turn and number == 0
                replies.append(_ask(chat, f"{_document()}\n\n{question}" if pasted else question, generation))
                replies[-1] |= {"question": question, "right": _contains(replies[-1]["text"], answer)}
            chat.close()
    lengths = [reply["tokens"] for reply in replies]
    ends = [reply["finish_reason"] for reply in replies]
    return {
        "replies": len(replies),
        "right": sum(reply["right"] for reply in replies),
        **{reason: ends.count(reason) for reason in ("eos", "repeats", "length")},
        "median_tokens": statistics.median(lengths),
        "tokens": sum(lengths),
        "each": replies,
    }


def _document() -> str:
    return f"Document {DOCUMENT.name}:\n\n{DOCUMENT.read_text(encoding='utf-8').strip()}"


def _ask(chat: Chat, message: str, generation: dict[str, Any]) -> dict[str, Any]:
    reply = chat.send(message, max_new_tokens=LIMIT, **generation)
    return {"text": reply.text, "finish_reason": reply.finish_reason, "tokens": len(reply.tokens)}


def _contains(text: str, answer: str) -> bool:
    return re.search(rf"\b({answer})\b", text, re.IGNORECASE) is not None


def _table(results: dict[str, dict[str, Any]]) -> str:
    columns = ("right", "eos", "repeats", "length", "median_tokens", "tokens")
    head = ["document in", *columns]
    rows = [[name, *(f"{found[column]:g}" for column in columns)] for name, found in results.items()]
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows))


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) == 2 else None)
