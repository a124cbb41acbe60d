"""Whether decode runs in compiled loops."""

from __future__ import annotations

import os
from functools import cache
from typing import TYPE_CHECKING

import torch

from ...storage import TieredStore
from ..layers.attend_rows import KV_KINDS
from ..model.model import Model

if TYPE_CHECKING:
    from ...kernels.compiled.team import Team
    from .compiled_step import CompiledStep

SWITCH = "STRATAKV_COMPILED"


def compiled_step(model: Model, store: TieredStore) -> CompiledStep | None:
    """The compiled form of decode; None where there is none."""
    if os.environ.get(SWITCH) == "0" or not model.can_compile:
        return None
    if getattr(torch, store.layout.dtype) not in KV_KINDS:
        return None
    from .compiled_step import CompiledStep

    return CompiledStep(model, store, _team())


@cache
def _team() -> Team:
    from ...kernels.compiled.team import Team

    return Team(torch.get_num_threads())
