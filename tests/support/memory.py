"""Memory of tests: given back between them, and the most that all processes of a run held at one time."""

from __future__ import annotations

import ctypes
import gc
import os
import threading
from pathlib import Path

_EVERY_S = 2.0
_MUCH = 100 << 20


def give_back() -> None:
    """Collect cycles, models among them, and have the C library hand back what it kept of them."""
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc's
    if trim is not None:
        trim(0)


def family(root: int) -> set[int]:
    """A process and its descendants now."""
    parents = dict(filter(None, map(_parent, Path("/proc").glob("[0-9]*"))))
    found = {root}
    while more := {process for process, parent in parents.items() if parent in found} - found:
        found |= more
    return found


def _parent(folder: Path) -> tuple[int, int] | None:
    try:
        return int(folder.name), int((folder / "stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return None


def resident(process: int) -> int:
    """Bytes of a process, those that it shares with others included; 0 if it has ended. It costs next to nothing."""
    try:
        return int(Path(f"/proc/{process}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0


def _share(process: int) -> int:
    """Its proportional set size: what several share counts once among them. To tell it, the kernel looks at every
    page."""
    try:
        lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return sum(1024 * int(line.split()[1]) for line in lines if line.startswith("Pss:"))


class Held:
    """What this process holds between tests. To look for what may go takes as long as some ten tests do."""

    def __init__(self) -> None:
        self._least = resident(os.getpid())

    def give_back_if_much(self) -> None:
        """Give back if there is a hundred megabytes more than there was at the least since the last time."""
        held = resident(os.getpid())
        if held > self._least + _MUCH:
            give_back()
            held = self._least = resident(os.getpid())
        self._least = min(self._least, held)


class PeakMemory:
    """Of this process and its descendants. It looks every two seconds, in a thread, from now on until `stop`."""

    def __init__(self) -> None:
        self.bytes = 0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="peak-memory", daemon=True)
        self._thread.start()

    def _watch(self) -> None:
        while True:
            processes = family(os.getpid())
            if sum(map(resident, processes)) > self.bytes:  # shares are at most that
                self.bytes = max(self.bytes, sum(map(_share, processes)))
            if self._ended.wait(_EVERY_S):
                return

    def stop(self) -> int:
        """The peak in bytes; 0 where the system does not tell."""
        self._ended.set()
        self._thread.join()
        return self.bytes
