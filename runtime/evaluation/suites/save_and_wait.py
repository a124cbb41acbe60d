"""The child process of the `resume` check: it reads, decodes, saves the session, says so, and waits to be killed.

python -m stratakv.runtime.evaluation.suites.save_and_wait '{"model": ..., "kv": {...}, ...}'
"""

from __future__ import annotations

import json
import signal
import sys

import numpy as np

from ...api.config import KVConfig
from ...chat.runtime import Runtime
from ...sessions import session

SAVED = "saved"


def main() -> None:
    task = json.loads(sys.argv[1])
    with Runtime.load(
        task["model"], device=task["device"], dtype="float32", weights="own", kv=KVConfig(**task["kv"]),
        local_files_only=True,
    ) as runtime:  # fmt: skip
        engine = runtime.engine
        sequence = engine.new_sequence()
        engine.prefill(sequence, np.array(task["prompt"], dtype=np.uint32), want_logits=False)
        engine.decode_known(sequence, np.array(task["known"], dtype=np.uint32))
        session.save(engine, sequence, task["session"], {})
        print(SAVED, flush=True)
        signal.pause()


if __name__ == "__main__":
    main()
