"""What is kept of one layer's text by a placement: a point of the past, the text that it leaves, and its tensors in a
session.

Shapes  G KV heads, R query heads each, m columns: tokens that are kept, D head dim.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from ...retrieval.placement import Placement, State
from ...retrieval.stored import Geometry
from .page_reader import PageReader
from .workspace import KEY_BLOCK

Block = Callable[[int, int], tuple[Tensor, Tensor]]
"""Keys and values `[G, end - begin, D]` of the tokens from `begin` to `end` after the sealed pages."""


class Kept(NamedTuple):
    """A point of a layer's past, for `rollback`."""

    positions: Tensor
    """int64 `[G, m]`, ascending; -1 in front where a head keeps fewer than others."""
    state: State
    is_whole: bool
    """All heads keep all of the text. Steps ask, so it is not asked of tensors, which would wait for a device."""
    end: int
    """Position behind the last token that has a column."""
    budget: int | None
    """Tokens of each head to keep; None: nobody has said yet."""
    length: int
    """Tokens of the text of which that is a share; 0: it is a number that stays the same."""
    prompt: int
    """Position behind the last prompt; 0: one is coming in."""
    last: Tensor | None
    """The last query rows of the prompt that is coming in, `[G, R, n, D]`."""
    steps: tuple[Tensor, ...]
    """The queries of a reply since its last page, `[G, R, 1, D]` each."""


class KeptText(NamedTuple):
    """The `retrieval.placement.Text` of a layer: sealed tokens come from the store, the others from `rest`."""

    positions: Tensor
    prompt: int
    num_sealed: int
    """Columns of sealed tokens: the first ones."""
    is_whole: bool
    """They are all tokens of the pages."""
    reader: PageReader
    rest: Block

    def blocks(self) -> Iterator[tuple[slice, Tensor, Tensor]]:
        self.reader.begin_step(None)
        size = self.reader.page_size
        block = KEY_BLOCK // size * size
        for begin in range(0, self.num_sealed, block):
            some = slice(begin, min(begin + block, self.num_sealed))
            if self.is_whole:
                keys, values = self.reader.block(some.start, some.stop)
            else:
                keys, values = self.reader.keys_values(self.positions[:, some].clamp(min=0), 1)
            yield some, keys.float(), values.float()
        count = self.positions.shape[1] - self.num_sealed
        for begin in range(0, count, KEY_BLOCK):
            end = min(begin + KEY_BLOCK, count)
            keys, values = self.rest(begin, end)
            yield slice(self.num_sealed + begin, self.num_sealed + end), keys.float(), values.float()


def exported(kept: Kept) -> dict[str, Tensor]:
    """All of it as tensors, copies. The rows of a prompt that is still coming in are not of a session."""
    at = torch.tensor([kept.end, -1 if kept.budget is None else kept.budget, kept.length, kept.prompt])
    steps = {"steps": torch.cat(kept.steps, 2)} if kept.steps else {}
    known = {f"known.{name}": tensor.clone() for name, tensor in kept.state.items()}
    return {"at": at, "positions": kept.positions.clone(), **steps, **known}


def kept_of(tensors: Mapping[str, Tensor]) -> Kept:
    """What `exported` gave; `check_kept` comes first."""
    end, budget, length, prompt = tensors["at"].tolist()
    state = {name.removeprefix("known."): tensor for name, tensor in tensors.items() if name.startswith("known.")}
    steps = tuple(tensors["steps"].unsqueeze(3).unbind(2)) if "steps" in tensors else ()
    positions = tensors["positions"]
    is_whole = positions.shape[1] == end and not bool((positions < 0).any())
    return Kept(positions, state, is_whole, end, None if budget < 0 else budget, length, prompt, None, steps)


def check_kept(
    tensors: Mapping[str, Tensor], num_tokens: int, nothing: Kept, placement: Placement, of: Geometry, page_size: int
) -> None:
    """Raise ValueError unless `tensors` can be what `exported` gave of a text of `num_tokens` tokens; they may come
    from anywhere.

    Args:
        nothing: what the layer keeps of no text.
    """
    fresh = {f"known.{name}": tensor for name, tensor in nothing.state.items()}
    for name in sorted(({"at", "positions", *fresh} ^ tensors.keys()) - {"steps"}):
        raise ValueError(f"{name[:60]!r}: {'unknown' if name in tensors else 'is not there'}")
    at, positions = tensors["at"], tensors["positions"]
    sealed = num_tokens - num_tokens % page_size
    if at.dtype != torch.int64 or at.shape != (4,) or not sealed <= int(at[0]) <= num_tokens:
        raise ValueError("'at': not where this text ends")
    end, budget, length, prompt = at.tolist()
    if not (-1 <= budget < 1 << 40 and 0 <= length <= num_tokens and 0 <= prompt <= end):
        raise ValueError("'at': not a budget of this text")
    if positions.dtype != torch.int64 or positions.ndim != 2 or len(positions) != of.groups:
        raise ValueError("'positions': not those of this layer's heads")
    is_inside = bool(((positions >= -1) & (positions < end)).all())
    if not is_inside or bool(((positions.diff(dim=1) < 1) & (positions[:, 1:] >= 0)).any()):
        raise ValueError("'positions': not ascending places of this text")
    if bool(((positions >= sealed).sum(1) != end - sealed).any()):
        raise ValueError("'positions': without tokens that no page has")
    for name, like in fresh.items():
        shape = like.shape
        if name.removeprefix("known.") in placement.columns:
            shape = torch.Size([like.shape[0], positions.shape[1], *like.shape[2:]])
        _check_numbers(name, tensors[name], like.dtype, shape, placement)
    if (steps := tensors.get("steps")) is not None:
        shape = torch.Size([of.groups, of.repeats, num_tokens - end, of.dim])
        _check_numbers("steps", steps, torch.float32, shape, placement)


def _check_numbers(name: str, tensor: Tensor, dtype: torch.dtype, shape: torch.Size, placement: Placement) -> None:
    if tensor.dtype != dtype or tensor.shape != shape:
        found = f"{tensor.dtype} {tuple(tensor.shape)}"
        raise ValueError(f"{name!r}: {found}, and {placement.name} keeps {dtype} {tuple(shape)}")
    if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
        raise ValueError(f"{name!r}: has a value that is not finite")
