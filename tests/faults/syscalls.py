"""Faults at every single write system call of a conversation: killed there, or told EIO or ENOSPC.

Real system calls, changed by strace: not part of the ordinary suite, `make faults` runs it where strace is
installed. LMDB writes with `pwrite64`, `pwritev` and `fdatasync`.
"""

from __future__ import annotations

import itertools
import os
import subprocess
import time
from pathlib import Path

import pytest
from conversations import NUM_TURNS, load
from faults import num_faults
from savers import Savers, Tally, check

from stratakv.runtime.sessions.saved import store_folders

CALLS = "pwrite64,pwritev,writev,fdatasync,fsync,ftruncate"
MOST = num_faults(default=20, share=0.5)


class Traced:
    """Runs conversations in which the n-th of the calls on `data.mdb` goes wrong."""

    def __init__(self, savers: Savers, folder: Path, name: str) -> None:
        self.savers, self.folder, self.name = savers, folder, name
        self.fifo = folder / "fifo"
        os.mkfifo(self.fifo)

    def run(self, store: Path, seed: int, fault: str) -> tuple[int, bool]:
        """The last turn acknowledged, and whether the fault happened."""
        log = self.folder / "strace.log"

        def attach(pid: int) -> None:
            data = store / self.name / "data.mdb"
            tracer = subprocess.Popen(
                ["strace", "-f", "-p", str(pid), "-o", log, "-P", data, "-e", f"inject={CALLS}:{fault}"],
                stderr=subprocess.PIPE, text=True,
            )  # fmt: skip
            assert tracer.stderr is not None
            while "attached" not in (line := tracer.stderr.readline()):
                assert line, "strace did not attach"
            open(self.fifo, "w").close()
            self.tracer = tracer

        acked, _ = self.savers.run(store, seed, fifo=self.fifo, on_start=attach)
        self.tracer.communicate()
        text = log.read_text()
        return acked, "(INJECTED)" in text or "killed by SIGKILL" in text


@pytest.mark.parametrize(
    "fault", ["signal=SIGKILL:when={}", "error=EIO:when={}", "error=ENOSPC:when={}", "error=EIO:when={}+"]
)
def test_a_fault_at_every_write(
    savers: Savers, tiny_llama: Path, tmp_path: Path, figures: list[str], fault: str
) -> None:
    started, tally, happened = time.monotonic(), Tally(), 0
    assert savers.run(tmp_path / "whole", 10**6) == (NUM_TURNS - 1, False)
    (whole,) = store_folders(tmp_path / "whole")
    traced = Traced(savers, tmp_path, whole.name)
    with load(tiny_llama, None) as oracle:
        for number in itertools.count(1):
            store = tmp_path / f"kv{number}"
            acked, has_happened = traced.run(store, number, fault.format(number))
            turn = check(oracle, tiny_llama, store, number, acked, tally)
            happened += has_happened
            tally.killed += has_happened and "KILL" in fault
            if "KILL" in fault:
                assert turn <= acked + 1
            if not has_happened or number == MOST:
                break
    figures.append(
        f"{fault.replace('{}', 'n')}: at each of {happened} write calls, {tally}, {time.monotonic() - started:.0f} s"
    )
    assert not tally.lost
    assert not tally.torn
    assert happened >= min(MOST, 20)
