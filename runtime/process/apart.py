"""Computing apart from the settings that the surrounding application has made for its own tensors and loading bars."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor

_CPU = torch.device("cpu")


@contextmanager
def apart() -> Iterator[None]:
    """Inside the block, tensors are made on the CPU where nothing else is said, and computed in the dtypes they have:
    the application's default device and autocast do not apply. Both are the calling thread's own."""
    kinds = [kind for kind in ("cpu", "cuda") if torch.is_autocast_enabled(kind)]
    is_elsewhere = torch.get_default_device() != _CPU
    if not (kinds or is_elsewhere):
        yield
        return
    with ExitStack() as stack:
        if is_elsewhere:
            stack.enter_context(_CPU)
        for kind in kinds:
            stack.enter_context(torch.autocast(kind, enabled=False))
        yield


def fp32(*shape: int) -> Tensor:
    """Memory for fp32 numbers, whatever dtype the application has made torch's default. What is written there by
    address must find the room."""
    return torch.empty(shape, dtype=torch.float32)


@contextmanager
def without_progress_bar() -> Iterator[None]:
    """Inside the block, transformers shows no loading bar. Afterwards the application's choice holds again."""
    from transformers.utils import logging

    was_enabled = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if was_enabled:
            logging.enable_progress_bar()
