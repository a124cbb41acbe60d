"""Whether decode runs in compiled loops. What they need is imported only where it does."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ...storage import TieredStore
from ..layers.attend_rows import is_kind
from ..model.locate import cache_dir
from ..model.model import Model
from ..process import compiled

if TYPE_CHECKING:
    from .compiled_step import CompiledStep


def compiled_step(model: Model, store: TieredStore) -> CompiledStep | None:
    """The compiled form of a model's steps over a store; None where PyTorch's operations are to compute them."""
    if not (model.can_compile and is_kind(store.layout.dtype) and compiled.is_available()):
        return None
    compiled.begin(cache_dir())
    if not compiled.can_compile():
        return None
    from ...kernels.compiled.sharpen import sharpen
    from .compiled_step import CompiledStep

    if not model.step_logits.is_exact:
        compiled.ahead([sharpen])
    return CompiledStep(model, store, compiled.team())
