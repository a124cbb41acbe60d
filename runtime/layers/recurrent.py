"""A recurrent layer of one sequence: a state of fixed size, which each token changes, and nothing else of the text.

A state cannot be cut back: whoever needs an earlier one must have kept it. States are never written again, so keeping
one is keeping a reference, and points, forks and undone steps cost no copy. Three are held of a sequence at most:

    the last page's end          one token ago        now
    for `leave`                  for `undo_step`

Shapes  T tokens, L tokens a page
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import ClassVar, NamedTuple, NoReturn

import numpy as np
import torch
from torch import Tensor

from ...storage import RecordError
from .attend_rows import Attending
from .base import Advance, LayerKV, State

MOST_STATES = 3
"""Held of a sequence at a time. Points of a conversation refer to others."""


class RecurrentPoint(NamedTuple):
    """A state, and how many tokens it has seen."""

    end: int
    state: State


class RecurrentLayer(LayerKV):
    """A layer that keeps a state in place of keys and values.

    Args:
        shapes: of the tensors of a state, which begin as zeros.
        page_size: L.
    """

    is_paged: ClassVar[bool] = False

    def __init__(
        self, layer: int, shapes: Mapping[str, tuple[int, ...]], page_size: int, device: torch.device
    ) -> None:  # fmt: skip
        self.layer, self.page_size, self.device = layer, page_size, device
        self._shapes = dict(shapes)
        zeros = {name: torch.zeros(shape, dtype=torch.float32, device=device) for name, shape in self._shapes.items()}
        self._hold(RecurrentPoint(0, zeros))

    @staticmethod
    def bytes_for(shapes: Mapping[str, tuple[int, ...]]) -> int:
        """Bytes of one state."""
        return sum(math.prod(shape) for shape in shapes.values()) * torch.float32.itemsize

    def _hold(self, now: RecurrentPoint, page: RecurrentPoint | None = None) -> None:
        """Be at the point `now`; `page` is that of the last page's end, where it is known."""
        self._now = self._before = now
        self._page = now if now.end % self.page_size == 0 else page

    # Prefill and decode

    def mix(self, inputs: tuple[Tensor, ...], advance: Advance) -> Tensor:
        """As the base has it. The state at the last page's end among these tokens is passed through and kept."""
        count, self._before = inputs[0].shape[0], self._now
        to_page = (self._now.end + count) // self.page_size * self.page_size - self._now.end
        outs = []
        for first, stop in ((0, to_page), (to_page, count)) if 0 < to_page < count else ((0, count),):
            out, state = advance(tuple(rows[first:stop] for rows in inputs), self._now.state)
            self._now = RecurrentPoint(self._now.end + stop - first, state)
            if self._now.end % self.page_size == 0:
                self._page = self._now
            outs.append(out)
        return torch.cat(outs) if len(outs) > 1 else outs[0]

    def begin_mix(self, addresses: np.ndarray) -> None:
        state = self._now.state
        behind = {name: torch.empty_like(tensor) for name, tensor in state.items()}
        assert all(tensor.is_contiguous() for tensor in state.values())
        addresses[:] = [one[name].data_ptr() for name in self._shapes for one in (state, behind)]
        self._before, self._now = self._now, RecurrentPoint(self._now.end + 1, behind)
        if self._now.end % self.page_size == 0:
            self._page = self._now

    def undo_step(self, tail_len: int, num_tokens: int) -> None:
        if self._now.end > num_tokens:
            self._now = self._before

    def begin(self) -> None:
        """A state goes on from whatever was before."""

    def finish(self, chains: list[bytes], tokens: np.ndarray, length: int) -> None:
        """There are no pages to publish."""

    def compare(self, before: Tensor, after: Tensor) -> None:
        """There is no placement to tell."""

    def end_prefill(self) -> None:
        """There is nothing to learn."""

    def look_ahead(self, query: Callable[[], Tensor]) -> None:
        """The state is where it is read."""

    def end_page(self, at: Attending) -> None:
        """There are no pages."""

    def seal(self, chain: bytes, tokens: np.ndarray) -> None:
        """There are no pages to publish."""

    # What layers do that attend

    def extend(self, q: Tensor, k: Tensor, v: Tensor, start: int, scale: float) -> NoReturn:
        raise AssertionError(_NO_ATTENTION)

    def step(self, q: Tensor, k: Tensor, v: Tensor, scale: float) -> NoReturn:
        raise AssertionError(_NO_ATTENTION)

    def extend_known(
        self, q: Tensor, k: Tensor, v: Tensor, start: int, scale: float, chains: list[bytes], tokens: np.ndarray
    ) -> NoReturn:
        raise AssertionError(_NO_ATTENTION)

    def begin_step(self, at: Attending) -> NoReturn:
        raise AssertionError(_NO_ATTENTION)

    def attend(self, rows: np.ndarray, at: Attending, run: Callable[[np.ndarray], None]) -> NoReturn:
        raise AssertionError(_NO_ATTENTION)

    # What the store and sessions keep

    def leave(self, tail_len: int, num_computed: int) -> dict[str, Tensor]:
        if self._page is None or self._page.end != self._now.end - tail_len:
            return {}  # of a session that ended behind it, and no page has been filled since
        return {f"{self.layer}/{name}": tensor for name, tensor in self._page.state.items()}

    def check_left(self, left: dict[str, Tensor], num_tokens: int) -> None:
        self._check(f"layer {self.layer}: ", self._parts(f"{self.layer}/", left))

    def adopt(self, chains: list[bytes], tokens: np.ndarray, num_tokens: int, left: dict[str, Tensor]) -> None:
        self._take(num_tokens, self._parts(f"{self.layer}/", left))

    def export(self) -> dict[str, Tensor]:
        return dict(self._now.state)

    def check_exported(self, prefix: str, tensors: dict[str, Tensor], num_tokens: int) -> set[str]:
        self._check(prefix, self._parts(prefix, tensors))
        return {f"{prefix}{name}" for name in self._shapes}

    def restore(
        self, tensors: dict[str, Tensor], chains: list[bytes], tokens: np.ndarray, num_tokens: int, *, has_state: bool
    ) -> None:
        self._take(num_tokens, tensors)

    def _parts(self, prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {name: tensors[f"{prefix}{name}"] for name in self._shapes if f"{prefix}{name}" in tensors}

    def _take(self, end: int, tensors: Mapping[str, Tensor]) -> None:
        self._hold(RecurrentPoint(end, {name: tensors[name].to(self.device, copy=True) for name in self._shapes}))

    def _check(self, prefix: str, parts: State) -> None:
        for name, shape in self._shapes.items():
            found = parts.get(name)
            if found is None or found.dtype != torch.float32 or tuple(found.shape) != shape:
                told = "nothing" if found is None else f"{found.dtype} {tuple(found.shape)}"
                raise RecordError(f"{prefix}{name}: {told}, expected {torch.float32} {shape}")
            if not bool(found.isfinite().all()):
                raise RecordError(f"{prefix}{name}: has a value that is not finite")

    # Points and copies

    def snapshot(self) -> tuple[RecurrentPoint, RecurrentPoint | None]:
        """Now, and the last page's end if it is known."""
        return self._now, self._page

    def rollback(self, point: tuple[RecurrentPoint, RecurrentPoint | None]) -> None:
        self._hold(*point)

    def truncate(self, num_pages: int) -> NoReturn:
        raise AssertionError("only paged layers are cut at a page: an earlier state is gone")

    def follow(self, other: RecurrentLayer) -> None:
        self.rollback(other.snapshot())

    def close(self) -> None:
        self._hold(RecurrentPoint(0, {}))


_NO_ATTENTION = "a recurrent layer attends to nothing"


def mixing(each: Sequence[Sequence[LayerKV]]) -> Callable[[int, tuple[Tensor, ...], Advance], Tensor]:
    """What a model's recurrent layers call with their number, inputs `[B, T, ..]`, and how these go on from a state:
    row b of a batch goes on from that of `each[b]`."""

    def mix(layer: int, inputs: tuple[Tensor, ...], advance: Advance) -> Tensor:
        outs = [layers[layer].mix(tuple(rows[b] for rows in inputs), advance) for b, layers in enumerate(each)]
        return torch.stack(outs) if len(outs) > 1 else outs[0].unsqueeze(0)

    return mix
