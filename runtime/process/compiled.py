"""Compiled loops for decode on a CPU: whether there are any, where their code is kept, and the threads that run them.

With `STRATAKV_COMPILED=1`, and numba, decode runs in them; otherwise PyTorch's operations compute it. Compiling takes
some ten seconds, once for each version of ours and each kind of processor. It begins in a thread of its own when a
model is about to be loaded, and goes on while a prompt is read; the first decode step waits for what it needs.

A fork waits for what is being imported or compiled: a child would wait for ever for a lock that a thread held which it
does not have.
"""

from __future__ import annotations

import logging
import os
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from shutil import rmtree
from typing import TYPE_CHECKING

from ...kernels.compiled.kept import Cache
from ...storage.files.private import private_folder
from .threads import num_threads

if TYPE_CHECKING:
    from ...kernels.compiled.operation import Operation
    from ...kernels.compiled.team import Team

logger = logging.getLogger(__name__)

SWITCH = "STRATAKV_COMPILED"
_BUSY = threading.RLock()
"""Held while a thread imports what compiles, or compiles."""
if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_BUSY.acquire, after_in_parent=_BUSY.release, after_in_child=_BUSY.release)
_UNUSED_S = 30 * 86400
"""Seconds after which code that no process asked for is removed: it is of an earlier version."""
_MESSAGE = "compiling decode for this processor, once; meanwhile prompts are read"


def is_available() -> bool:
    """True if there are compiled loops and they are switched on."""
    return os.environ.get(SWITCH) == "1" and find_spec("numba") is not None


@cache
def team() -> Team:
    """The threads of this process."""
    import torch

    from ...kernels.compiled.team import Team

    return Team(max(torch.get_num_threads(), num_threads()))


@cache
def begin(folder: Path, tell: Callable[[str], None] = logger.info) -> None:
    """Begin to compile what every model needs, or to read it from where it is kept. What others ask for from now on is
    kept there, too.

    Args:
        folder: of the caches. tell: told once if it takes a while.
    """
    Cache.folder = _kept_in(folder, Cache.key())
    threading.Thread(target=_compile, args=(tell,), name="compile", daemon=True).start()


def _compile(tell: Callable[[str], None]) -> None:
    with _BUSY:
        from ...kernels.compiled import attention, heads, products, work
    if Cache.folder is None or not any(Cache.folder.iterdir()):
        tell(_MESSAGE)
    _compile_all([work.work, work.tell, products.prepare, products.product, heads.heads, attention.attend])


def ahead(operations: list[Operation]) -> None:
    """Begin to compile what a model needs besides."""
    threading.Thread(target=_compile_all, args=(operations,), name="compile", daemon=True).start()


def _compile_all(operations: list[Operation]) -> None:
    for operation in operations:
        with _BUSY:
            operation.address  # noqa: B018 - asking compiles it


def _kept_in(folder: Path, key: str) -> Path | None:
    """A private folder for code of this key: the user's choice for all that numba compiles, else in `folder`, else,
    where nothing can be written there, among temporary files. None: nowhere."""
    chosen = os.environ.get("NUMBA_CACHE_DIR")
    places = [Path(chosen) / "stratakv"] if chosen else [folder / "compiled"]
    for place in (*places, Path(tempfile.gettempdir()) / f"stratakv-{os.getuid() if hasattr(os, 'getuid') else 0}"):
        try:
            private_folder(place)
            kept = place / key
            kept.mkdir(mode=0o700, exist_ok=True)
            os.utime(kept)
        except OSError as error:
            logger.info("compiled code is not kept in %s: %s", place, error)
            continue
        _remove_unused(place)
        return kept
    return None


def _remove_unused(place: Path) -> None:
    oldest = time.time() - _UNUSED_S
    with suppress(OSError):  # another process removes the same
        for folder in place.iterdir():
            if folder.stat().st_mtime < oldest:
                rmtree(folder)
