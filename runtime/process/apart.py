"""Computing apart from what the application around us has set for its own tensors and its own loading bars."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch

_CPU = torch.device("cpu")


@contextmanager
def apart() -> Iterator[None]:
    """Tensors are made on the CPU where nothing else is said, and computed in the dtypes they have: no default device
    and no autocast of the application's. Both are the calling thread's own."""
    with ExitStack() as stack:
        if torch.get_default_device() != _CPU:
            stack.enter_context(_CPU)
        for kind in ("cpu", "cuda"):
            if torch.is_autocast_enabled(kind):
                stack.enter_context(torch.autocast(kind, enabled=False))
        yield


@contextmanager
def without_progress_bar() -> Iterator[None]:
    """transformers shows none while it loads; what the application chose is then as before."""
    from transformers.utils import logging

    was_enabled = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if was_enabled:
            logging.enable_progress_bar()
