"""A program to be killed: holds conversations, writes their pages behind and saves them after each turn.

    python saver.py MODEL

Per line `STORE SEED [FIFO]` read from stdin it forks a child that holds conversation SEED in STORE; with FIFO it
begins when somebody has opened that for writing. Prints `pid N`, `acked TURN` when a save has returned, `refused
TURN` when it failed, and `killed` or `ended` when the child is gone; its pid stays its own until the next line.
The interpreter and the libraries start once; every child opens the store itself.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import torch
from conversations import HOST_GB, NUM_TURNS, begin, load, take_turn

from stratakv.runtime import SessionError


def say(line: str) -> None:
    os.write(1, f"{line}\n".encode())


def converse(model: Path, store: Path, seed: int) -> None:
    with load(model, store, host_gb=HOST_GB) as runtime:
        chat = begin(runtime, seed)
        for turn in range(NUM_TURNS):
            take_turn(chat, seed, turn)
            try:
                chat.save(f"s{seed}")
            except SessionError:
                say(f"refused {turn}")
            else:
                say(f"acked {turn}")


def main() -> None:
    model = Path(sys.argv[1])
    torch.set_num_threads(1)
    load(model, None).close()  # imports what a child will need
    say("ready")
    pid = 0
    for line in sys.stdin:
        if pid:
            os.waitpid(pid, 0)
        store, seed, *fifo = line.split()
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                for path in fifo:
                    open(path).close()
                converse(model, Path(store), int(seed))
                status = 0
            finally:
                os._exit(status)
        say(f"pid {pid}")
        gone = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
        assert gone is not None
        say("killed" if gone.si_code == os.CLD_KILLED else "ended")


if __name__ == "__main__":
    main()
