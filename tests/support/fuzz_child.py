"""A process that reads damaged files one after another, as a user's program would, and says what came of it.

A line of JSON on standard input asks, a line on standard output answers. Only the parent judges: this
process may hang, be killed or grow, which is what is being tested.
"""

from __future__ import annotations

import ctypes
import json
import os
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any


def load_model(path: str) -> None:
    import torch

    from stratakv.runtime.model.locate import locate
    from stratakv.runtime.model.model import Model

    directory = locate(path, "float32", local_files_only=True, on_convert=lambda name: None)
    Model.load(directory, torch.device("cpu"), torch.float32)


def read_prompt(model: str, store: str, index: str, text: str, question: str, answers: list[list[int]] | None) -> None:
    """Read a text that was read before, and ask; `answers` are what may come, where that is known."""
    from stratakv.runtime import KVConfig, Runtime

    kv = KVConfig(path=store, index=index, budget=112, local=32, host_gb=0.01, disk_gb=0.05)
    with Runtime.load(model, dtype="float32", kv=kv) as runtime:
        chat = runtime.chat()
        chat.read_text(text)
        tokens = chat.send(question, max_new_tokens=4, ignore_eos=True).tokens
    assert answers is None or tokens in answers, f"answered {tokens}, not one of {answers}"


def load_session(model: str, store: str, index: str, name: str) -> None:
    from stratakv.runtime import KVConfig, Runtime

    kv = KVConfig(path=store, index=index, budget=112, local=32, host_gb=0.01, disk_gb=0.05)
    with Runtime.load(model, dtype="float32", kv=kv) as runtime:
        chat = runtime.chat(session=name)
        chat.send("Who wrote the log?", max_new_tokens=4, ignore_eos=True)


def read_record(folder: str, kind: str, key: str) -> None:
    import numpy as np
    from kv_pages import SMALL, disk_tier, text

    from stratakv.storage import RecordError
    from stratakv.storage.codecs import CODECS, make_codec

    disk = disk_tier(Path(folder))
    try:
        if kind == "state":
            disk.get_state(bytes.fromhex(key))
            return
        codecs = [make_codec(name, SMALL) for name in CODECS]
        out = np.zeros(SMALL.page_bytes, dtype=np.uint8)
        failures = disk.read_pages(
            [bytes.fromhex(key)], text(SMALL, 1).tokens, lambda i: out, {codec.code: codec for codec in codecs}
        )
        if failures:
            raise RecordError(failures[0])
    finally:
        disk.close()


WORK: dict[str, Callable[..., None]] = {
    "model": load_model, "session": load_session, "prompt": read_prompt, "record": read_record,
}  # fmt: skip


def peak_bytes() -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise AssertionError("no VmHWM")


def answer(work: str, arguments: list[str]) -> dict[str, Any]:
    from stratakv.runtime.api.errors import ModelFileError, SessionError
    from stratakv.storage import RecordError

    typed = {"model": ModelFileError, "session": SessionError, "record": RecordError}.get(work, ())
    ctypes.CDLL(None).malloc_trim(0)  # what an earlier file left free would hide what this one takes
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from here
    before, started = peak_bytes(), time.process_time()
    outcome, message = "loaded", ""
    try:
        WORK[work](*arguments)
    except typed as error:
        outcome, message = "refused", str(error)
    except BaseException:
        outcome, message = "wrong", traceback.format_exc()
    spent = time.process_time() - started
    return {"outcome": outcome, "message": message, "seconds": spent, "growth": peak_bytes() - before}


def main() -> None:
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no answer
    for line in sys.stdin:
        request = json.loads(line)
        replies.write(json.dumps(answer(*request)) + "\n")
        replies.flush()


if __name__ == "__main__":
    main()
