"""A program to be killed: holds conversations, writes their pages behind and saves them after each turn.

    python saver.py MODEL

Per line `STORE SEED` read from stdin it forks a child that holds conversation SEED in STORE. Prints `pid N`,
`acked TURN` when a save has returned, and `dead` when the child is gone. The interpreter and the libraries start
once; every child opens the store itself.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import torch
from conversations import HOST_GB, NUM_TURNS, begin, load, take_turn


def say(line: str) -> None:
    os.write(1, f"{line}\n".encode())


def converse(model: Path, store: Path, seed: int) -> None:
    with load(model, store, host_gb=HOST_GB) as runtime:
        chat = begin(runtime, seed)
        for turn in range(NUM_TURNS):
            take_turn(chat, seed, turn)
            chat.save(f"s{seed}")
            say(f"acked {turn}")


def main() -> None:
    model = Path(sys.argv[1])
    torch.set_num_threads(1)
    load(model, None).close()  # imports what a child will need
    say("ready")
    for line in sys.stdin:
        store, seed = line.split()
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                converse(model, Path(store), int(seed))
                status = 0
            finally:
                os._exit(status)
        say(f"pid {pid}")
        os.waitpid(pid, 0)
        say("dead")


if __name__ == "__main__":
    main()
