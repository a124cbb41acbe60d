"""CUDA graphs of a decode step's work between attention calls: one launch instead of one for every operation.

A graph reads and writes the same memory at every replay. So inputs are copied to where it reads, except those that
always lie there: outputs of another graph, and `held` tensors. Outputs are good until the next step of as many
sequences.

Nothing but time depends on graphs. Work that cannot be captured is called instead, with a warning, from then on.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .lean_layer import LeanLayer

logger = logging.getLogger(__name__)

_CALLS = 3
"""Steps a batch size must be seen before it is captured: a shrinking batch passes each size only briefly."""
_BATCH_SIZES = 4
"""The most batch sizes for which graphs are kept. Graphs take memory; other sizes are computed by calls."""

Work = Callable[..., tuple[Tensor, ...]]
"""A pure function of tensors to tensors, whose shapes are static for a batch size."""


class Graphs:
    """The memory and the state that all graphs of a model share."""

    def __init__(self) -> None:
        self.are_off = False
        self._pool: Any = None
        self._beside: torch.cuda.Stream | None = None
        """Where graphs are recorded, and run once before: what libraries keep for a stream is made there once, outside
        of the memory that graphs share."""
        self._first: torch.cuda.CUDAGraph | None = None
        """Of nothing: the memory that graphs share is given up when the last one goes, and no other may have it then.
        """
        self._lasting: set[tuple[int, torch.Size]] = set()
        self._held: dict[tuple[str, int], tuple[Tensor, Tensor]] = {}

    def record(self, work: Work, inputs: tuple[Tensor, ...]) -> tuple[Callable[[], object], tuple[Tensor, ...]]:
        """Record a graph of `work` on the memory of `inputs`. Returns its replay, and the outputs that a replay fills.

        Raises RuntimeError if something in it cannot be captured.
        """
        device = inputs[0].device
        if self._beside is None:
            self._beside, self._pool = torch.cuda.Stream(device), torch.cuda.graph_pool_handle()
            self._first, _ = self._captured(lambda: (torch.zeros(1, dtype=torch.uint8, device=device),), device)
        self._beside.wait_stream(torch.cuda.current_stream(device))
        try:
            with torch.cuda.stream(self._beside):
                work(*inputs)  # libraries set themselves up in a first call, which a capture must not see
        finally:
            torch.cuda.current_stream(device).wait_stream(self._beside)
        graph, outputs = self._captured(lambda: work(*inputs), device)
        return graph.replay, outputs

    def _captured(
        self, work: Callable[[], tuple[Tensor, ...]], device: torch.device
    ) -> tuple[torch.cuda.CUDAGraph, tuple[Tensor, ...]]:
        graph = torch.cuda.CUDAGraph()
        with (
            torch.cuda.stream(torch.cuda.current_stream(device)),  # a capture that fails does not come back to it
            # other threads move pages meanwhile, which must not disturb the capture
            torch.cuda.graph(graph, pool=self._pool, stream=self._beside, capture_error_mode="thread_local"),
        ):
            outputs = work()
        return graph, outputs

    def lasts(self, tensor: Tensor) -> bool:
        """True if the tensor will lie in the same place at the next step as well."""
        return (tensor.data_ptr(), tensor.shape) in self._lasting

    def keep(self, tensors: tuple[Tensor, ...]) -> None:
        """Note that these tensors will last: the caller holds them for good."""
        self._lasting.update((tensor.data_ptr(), tensor.shape) for tensor in tensors)

    def held(self, name: str, tensors: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """Copy a pair of tensors of a step `[B, ..]` into memory that stays the same for that batch size, and return
        it."""
        key = name, tensors[0].shape[0]
        if key not in self._held:
            self._held[key] = tensors[0].clone(), tensors[1].clone()
            self.keep(self._held[key])
        for mine, tensor in zip(self._held[key], tensors, strict=True):
            mine.copy_(tensor)
        return self._held[key]


class Captured:
    """`work`, with a graph for each of the first batch sizes that are met several times."""

    def __init__(self, work: Work, graphs: Graphs) -> None:
        self._work, self._graphs = work, graphs
        self._calls: Counter[int] = Counter()
        self._captured: dict[int, tuple[tuple[Tensor, ...], Callable[[], object], tuple[Tensor, ...]]] = {}

    def __call__(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        batch = inputs[0].shape[0]
        if batch not in self._captured and not self._capture(batch, inputs):
            return self._work(*inputs)
        own, replay, outputs = self._captured[batch]
        for mine, given in zip(own, inputs, strict=True):
            if mine.data_ptr() != given.data_ptr():
                mine.copy_(given)
        replay()
        return outputs

    def _capture(self, batch: int, inputs: tuple[Tensor, ...]) -> bool:
        self._calls[batch] += 1
        if self._graphs.are_off or self._calls[batch] < _CALLS or len(self._captured) == _BATCH_SIZES:
            return False
        own = tuple(given if self._graphs.lasts(given) else given.clone() for given in inputs)
        try:
            replay, outputs = self._graphs.record(self._work, own)
        except RuntimeError as error:
            logger.warning("decode goes on without CUDA graphs: %s", error)
            self._graphs.are_off = True
            return False
        self._graphs.keep(outputs)
        self._captured[batch] = own, replay, outputs
        return True


class CapturedLayer:
    """A `LeanLayer` whose halves are replayed as graphs."""

    def __init__(self, lean: LeanLayer, graphs: Graphs) -> None:
        self.scale = lean.scale
        self._before = Captured(lean.before, graphs)
        self._after = Captured(lambda *given: (lean.after(*given),), graphs)

    def before(self, hidden: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, ...]:
        return self._before(hidden, cos, sin)

    def after(self, hidden: Tensor, attended: Tensor, *more: Tensor) -> Tensor:
        return self._after(hidden, attended, *more)[0]
