"""Real processes killed at random moments while they converse, write behind and save.

What was reported saved is there, complete and to the bit, whatever the moment; what is there is one whole turn;
nothing torn is ever returned. The oracle is a run without a disk in this process.
"""

from __future__ import annotations

import os
import random
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import saver
from conversations import NUM_TURNS, load, state_of, take_turn, untroubled
from faults import num_faults

from stratakv.runtime import Runtime
from stratakv.runtime.saved import StoreFolder, store_folders

TRIALS = num_faults(default=15)
TRIALS_PER_STORE = 10


@dataclass
class Tally:
    acked: int = 0
    killed: int = 0
    in_between: int = 0
    lost: list[str] = field(default_factory=list)
    torn: list[str] = field(default_factory=list)


class Savers:
    """The program `saver.py` and its children."""

    def __init__(self, model: Path) -> None:
        command = [sys.executable, saver.__file__, str(model)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self._buffer = b""
        assert self._line(None) == "ready"

    def run(self, store: Path, seed: int, kill_after_s: float) -> tuple[int, bool]:
        """The last turn that was acknowledged (-1: none), and whether the child was killed."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{store} {seed}\n".encode())
        self._process.stdin.flush()
        pid, acked, killed = 0, -1, False
        deadline: float | None = time.monotonic() + kill_after_s
        while (line := self._line(deadline)) != "dead":
            if line is None:
                if pid:
                    os.kill(pid, signal.SIGKILL)
                    killed = True
                    deadline = None
            elif line.startswith("pid "):
                pid = int(line[4:])
            else:
                acked = int(line.removeprefix("acked "))
        return acked, killed

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


@pytest.fixture
def savers(tiny_llama: Path) -> Iterator[Savers]:
    found = Savers(tiny_llama)
    yield found
    found.close()


def test_what_was_reported_saved_survives_a_kill_at_any_moment(
    savers: Savers, tiny_llama: Path, tmp_path: Path, figures: list[str]
) -> None:
    rng, tally, started = random.Random(0), Tally(), time.monotonic()
    begun = time.monotonic()
    assert savers.run(tmp_path / "whole", 10**6, 60.0) == (NUM_TURNS - 1, False)
    whole_s = time.monotonic() - begun
    with load(tiny_llama, None) as oracle:
        for trial in range(TRIALS):
            store = tmp_path / f"kv{trial // TRIALS_PER_STORE}"
            acked, killed = savers.run(store, trial, rng.uniform(0.15, 0.95) * whole_s)
            tally.acked += acked + 1
            tally.killed += killed
            check(oracle, tiny_llama, store, trial, acked, tally)
    figures.append(
        f"kill -9: {TRIALS} trials, {tally.killed} killed, {tally.acked} saves acknowledged, "
        f"{tally.in_between} saved but not yet acknowledged, lost {len(tally.lost)}, torn {len(tally.torn)}, "
        f"{time.monotonic() - started:.0f} s"
    )
    assert not tally.lost
    assert not tally.torn
    assert tally.killed > TRIALS // 2
    assert tally.acked > TRIALS // 2


def check(oracle: Runtime, model: Path, store: Path, seed: int, acked: int, tally: Tally) -> None:
    """Session `seed` against the oracle, then every record of the store."""
    expected = untroubled(oracle, seed)
    if not store_folders(store):
        assert acked < 0
        return
    with load(model, store) as runtime:
        if f"s{seed}" not in runtime.sessions():
            if acked >= 0:
                tally.lost.append(f"s{seed}: acknowledged turn {acked} is gone")
            return
        chat = runtime.chat(session=f"s{seed}")
        found = state_of(chat)
        turn = next((t for t in range(NUM_TURNS) if expected[t] == found), None)
        if turn is None or chat.restored != chat.num_tokens:
            tally.torn.append(f"s{seed}: not the state after any turn")
            return
        if turn < acked:
            tally.lost.append(f"s{seed}: turn {turn}, acknowledged {acked}")
        assert turn <= acked + 1
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
