"""Compiled loops for decode on a CPU: whether there are any, where their code is kept, and the threads that run them.

Decode on a CPU runs in them; without numba, or with `STRATAKV_COMPILED=0`, PyTorch's operations compute it. Compiling
takes some ten seconds, once for each version of ours and each kind of processor. It begins in a thread of its own when
a model is about to be loaded, and goes on while a prompt is read; the first decode step waits for what it needs.

A fork waits for what is being imported or compiled (`BUSY`).
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

from ...kernels.compiled.kept import BUSY, Cache
from ...storage.files.private import private_folder
from .threads import num_threads

if TYPE_CHECKING:
    from ...kernels.compiled.operation import Operation
    from ...kernels.compiled.team import Team

logger = logging.getLogger(__name__)

SWITCH = "STRATAKV_COMPILED"
_begun = threading.Event()
_UNUSED_S = 30 * 86400
"""Seconds after which code that no process asked for is removed: it is of an earlier version."""


def is_available() -> bool:
    """True unless they are switched off or there is no numba. Whether numba can be used is known when it is imported:
    see `can_compile`."""
    return os.environ.get(SWITCH) != "0" and find_spec("numba") is not None


def can_compile() -> bool:
    """True if numba can be imported. It is imported for that, which takes a while."""
    with BUSY:
        return _imported()


@cache
def _imported() -> bool:
    try:
        from ...kernels.compiled.operation import Operation  # noqa: F401
    except (ImportError, OSError) as error:  # its libraries do not fit each other, or this system
        logger.warning("decode is slower than it could be: numba cannot be used here (%s)", error)
        return False
    return True


@cache
def team() -> Team:
    """The threads of this process."""
    import torch

    from ...kernels.compiled.team import Team

    return Team(max(torch.get_num_threads(), num_threads()))


def tell() -> None:
    """Log a compilation where the caller did not ask to be told of it."""
    logger.info("compiling decode for this processor, once; meanwhile prompts are read")


def begin(folder: Path, on_compile: Callable[[], None] = tell) -> None:
    """Begin to compile what every model needs, or to read it from where it is kept. What others ask for from now on is
    kept there, too. Later calls do nothing.

    Args:
        folder: of the caches.
        on_compile: called, in another thread, if nothing is kept there yet: then compiling takes a while.
    """
    with BUSY:
        if _begun.is_set():
            return
        _begun.set()
        Cache.folder = _kept_in(folder, Cache.key())
    threading.Thread(target=_compile, args=(on_compile,), name="compile", daemon=True).start()


def _compile(on_compile: Callable[[], None]) -> None:
    if not can_compile():
        return
    with BUSY:
        from ...kernels.compiled import attention, centroids, heads, products, work
    if Cache.folder is None or not any(Cache.folder.iterdir()):
        on_compile()
    first = [work.work, work.tell, products.prepare, products.product, centroids.learn, heads.heads, attention.attend]
    _compile_all(first)


def ahead(operations: list[Operation]) -> None:
    """Begin to compile what a model needs besides."""
    threading.Thread(target=_compile_all, args=(operations,), name="compile", daemon=True).start()


def _compile_all(operations: list[Operation]) -> None:
    for operation in operations:
        with BUSY:
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
