"""The program `saver.py`, its children that die, and what must be true of the store they leave."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import saver
from conversations import NUM_TURNS, load, state_of, take_turn, untroubled

from stratakv.runtime import Runtime
from stratakv.runtime.sessions.saved import StoreFolder, store_folders


@dataclass
class Tally:
    acked: int = 0
    killed: int = 0
    in_between: int = 0
    lost: list[str] = field(default_factory=list)
    torn: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        return (
            f"{self.killed} killed, {self.acked} saves acknowledged, {self.in_between} saved but not acknowledged, "
            f"lost {len(self.lost)}, torn {len(self.torn)}"
        )


class Savers:
    """The program `saver.py` and its children."""

    def __init__(self, model: Path) -> None:
        command = [sys.executable, saver.__file__, str(model)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self._buffer = b""
        assert self._line(None) == "ready"

    def run(
        self,
        store: Path,
        seed: int,
        *,
        kill_after_s: float | None = None,
        kill_at_ack: int | None = None,
        fifo: Path | None = None,
        on_start: Callable[[int], None] = lambda pid: None,
    ) -> tuple[int, bool]:
        """The last turn that was acknowledged (-1: none), and whether the child was killed.

        Args:
            fifo: the child waits until it is opened. on_start: given the child's pid.
        """
        assert self._process.stdin is not None
        self._process.stdin.write(f"{store} {seed} {fifo or ''}\n".encode())
        self._process.stdin.flush()
        pid, acked = 0, -1
        deadline = None if kill_after_s is None else time.monotonic() + kill_after_s
        while (line := self._line(deadline)) not in ("killed", "ended"):
            if line is None:
                if pid:
                    os.kill(pid, signal.SIGKILL)
                    deadline = None
            elif line.startswith("pid "):
                pid = int(line[4:])
                on_start(pid)
            elif line.startswith("acked "):
                acked = int(line.removeprefix("acked "))
                if acked == kill_at_ack:
                    os.kill(pid, signal.SIGKILL)
        return acked, line == "killed"

    def _line(self, deadline: float | None) -> str | None:
        """The next line, or None when it is `deadline`."""
        assert self._process.stdout is not None
        while b"\n" not in self._buffer:
            left = None if deadline is None else max(0.0, deadline - time.monotonic())
            if not select.select([self._process.stdout], [], [], left)[0]:
                return None
            more = os.read(self._process.stdout.fileno(), 4096)
            assert more, "the saver ended by itself"
            self._buffer += more
        line, _, self._buffer = self._buffer.partition(b"\n")
        return line.decode()

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        assert self._process.wait() == 0
        assert self._process.stdout is not None
        self._process.stdout.close()


def check(oracle: Runtime, model: Path, store: Path, seed: int, acked: int, tally: Tally) -> int:
    """Session `seed` against the oracle, then every record of the store. Returns the turn it is at, -1: none."""
    tally.acked += acked + 1
    expected = untroubled(oracle, seed)
    if not store_folders(store):
        assert acked < 0
        return -1
    with load(model, store) as runtime:
        if f"s{seed}" not in runtime.sessions():
            if acked >= 0:
                tally.lost.append(f"s{seed}: acknowledged turn {acked} is gone")
            return -1
        chat = runtime.chat(session=f"s{seed}")
        found = state_of(chat)
        turn = next((t for t in range(NUM_TURNS) if expected[t] == found), None)
        if turn is None or chat.restored != chat.num_tokens:
            tally.torn.append(f"s{seed}: not the state after any turn")
            return -1
        if turn < acked:
            tally.lost.append(f"s{seed}: turn {turn}, acknowledged {acked}")
        tally.in_between += turn > acked
        take_turn(chat, seed, turn + 1)
        if state_of(chat).tokens != expected[turn + 1].tokens:
            tally.torn.append(f"s{seed}: turn {turn + 1} says something else after resuming")
        if runtime.stats()["pages_recomputed"]:
            tally.torn.append(f"s{seed}: a page had to be recomputed")
        runtime.store.check_integrity()
    (folder,) = store_folders(store)
    with StoreFolder(folder) as opened:
        tally.torn += opened.damage()
    return turn
