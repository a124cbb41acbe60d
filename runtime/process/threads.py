"""The choice of how many OpenMP threads there are, made at start unless the user has made it.

libgomp starts a thread on every processor the process may run on. It does not know of a control group's quota: a
container that is given two processors of sixty-four would get sixty-four threads. Nor of siblings: two threads on one
core share what multiplies, which is all that these threads do. So the count is that of cores, at most the quota. How
many threads take a decode step, at any moment, is decided in `spare_cores`.

The OpenMP library reads its environment when it is loaded, with torch, and never again. So this comes before
`import torch` or not at all:

- The command's process is ours: `choose` sets what is missing, for libraries that come later as well.
- A program that imports us is not. `import_torch`, which runs when `stratakv.runtime.Runtime` is first asked for, sets
  the variable for as long as torch takes to load and puts back what was there; child processes see nothing of it. If
  torch is loaded already, nothing is changed.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from math import ceil
from pathlib import Path

logger = logging.getLogger(__name__)

_SEEN_BY = os.getpid()
_COUNTS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OMP_THREAD_LIMIT")
_CHOSEN = any(name in os.environ for name in _COUNTS)
"""True if the user had chosen a number before `choose` ran."""


def user_chose_count() -> bool:
    """True if the number of threads is the user's choice."""
    return _CHOSEN


def choose() -> None:
    """Set for this process and its children the variables that the user has not set. It has no effect once torch is
    loaded."""
    os.environ.update(_missing())


def import_torch() -> None:
    """Load torch with the variables that the user has not set; the environment is then as before."""
    if "torch" in sys.modules:
        return
    with _environment(_missing()):
        import torch  # noqa: F401


def one_in_a_child() -> None:
    """Give torch one thread, for good, in a child of a fork: OpenMP's threads do not survive a fork, and whoever waits
    for them there waits for ever. Processes that start anew (multiprocessing's spawn and forkserver methods) have them
    all."""
    import torch

    if os.getpid() != _SEEN_BY and torch.get_num_threads() > 1:
        torch.set_num_threads(1)
        logger.warning(
            "this process is a fork of one that had loaded torch: it computes with one thread; spawn it instead"
        )


def _missing() -> dict[str, str]:
    count = num_threads()
    if user_chose_count() or count == len(processors()):  # otherwise OpenMP chooses that count by itself
        return {}
    return {"OMP_NUM_THREADS": str(count)}


@contextmanager
def _environment(variables: dict[str, str]) -> Iterator[None]:
    """Set `variables`, none of which is set yet, for the length of the block."""
    os.environ.update(variables)
    try:
        yield
    finally:
        for name in variables:
            os.environ.pop(name, None)


def num_threads(system: Path = Path("/")) -> int:
    """The number of cores this process may run on, at most as many as its control group's quota pays for; 1 or more.

    Args:
        system: the folder that `sys` and `proc` are in.
    """
    numbers = processors()
    cores = {_siblings(system, processor) for processor in numbers}
    quota = min(_quotas(system), default=float("inf"))
    return max(1, min(len(cores), ceil(min(quota, len(cores)))))


def processors() -> set[int]:
    """Numbers of the processors that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return os.sched_getaffinity(0)
    return set(range(os.cpu_count() or 1))


def _siblings(system: Path, processor: int) -> str:
    """A text that names the core of a processor."""
    try:
        return (system / f"sys/devices/system/cpu/cpu{processor}/topology/thread_siblings_list").read_text().strip()
    except OSError:  # not Linux, or hidden: each processor counts as a core
        return str(processor)


def _quotas(system: Path) -> Iterator[float]:
    """The processors' worth of time that each control group around this process allows, where one says so."""
    try:
        lines = (system / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        root = system / "sys/fs/cgroup"
        if controllers and "cpu" not in controllers.split(","):
            continue
        for folder in _upwards(root if not controllers else root / "cpu", path):
            yield from _quota(folder)


def _upwards(root: Path, path: str) -> Iterator[Path]:
    """The group's folder and those around it. In a container `path` may be the host's: then only the root is there."""
    folder = root / path.lstrip("/")
    yield from (place for place in (folder, *folder.parents) if place.is_relative_to(root) and place.is_dir())


def _quota(folder: Path) -> Iterator[float]:
    try:
        if (folder / "cpu.max").is_file():
            quota, period = (folder / "cpu.max").read_text().split()
        else:
            quota = (folder / "cpu.cfs_quota_us").read_text()
            period = (folder / "cpu.cfs_period_us").read_text()
        if quota != "max" and int(quota) > 0:
            yield int(quota) / int(period)
    except (OSError, ValueError):  # no such controller here, or one that says nothing we know
        return
