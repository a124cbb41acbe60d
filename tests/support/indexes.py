"""The indexes under contract: a new index adds one line here and has the whole suite. And what they are asked."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from math import gcd
from typing import Any

import torch
from profiles import a2ats_profile
from torch import Tensor

from stratakv.retrieval.index import Index, Part, Selection
from stratakv.retrieval.layer import IndexedLayer
from stratakv.retrieval.params import IndexParams
from stratakv.retrieval.registry import make_index

Shape = tuple[int, int, int]
"""KV heads, query heads each, head dim."""
SHAPES = [(3, 3, 64), (8, 1, 64), (2, 4, 128), (1, 16, 256), (1, 8, 512)]
TURNED = {256: (64, 32), 512: (512, 64)}
"""Of keys of a head dim: between how many channels, the first ones, half of a pair lies, and how many pairs turn.
Qwen3.5 turns a quarter of its channels, Gemma 4 a quarter of its pairs, which are scattered over all."""
PAGES = 37
PARAMS = [
    IndexParams(page_size=16, sink=16, local=64),
    IndexParams(page_size=16, sink=5, local=33),
    IndexParams(page_size=16, sink=0, local=0),
    IndexParams(page_size=4, sink=3, local=9),
]


class HalfSplitRope:
    """RoPE as Llama's, in plain tensors: dimension i turns with i + W/2, of W = D unless `TURNED` says else."""

    def __init__(self, base: float = 10_000.0) -> None:
        self.base = base
        self._frequencies: dict[int, Tensor] = {}
        """By width: a step that was recorded reads them, so they are kept."""

    def rotate(self, keys: Tensor, positions: Tensor, sign: float = 1.0) -> Tensor:
        width, pairs = TURNED.get(keys.shape[-1], (keys.shape[-1], keys.shape[-1] // 2))
        if width not in self._frequencies:
            self._frequencies[width] = self.base ** (-torch.arange(0, width, 2) / width)
        angles = positions.float().unsqueeze(-1) * self._frequencies[width]
        angles[..., pairs:] = 0
        cos, sin = angles.cos(), sign * angles.sin()
        one, two = keys[..., :width].float().chunk(2, -1)
        return torch.cat([one * cos - two * sin, two * cos + one * sin, keys[..., width:].float()], -1)

    def unrotate(self, keys: Tensor, positions: Tensor) -> Tensor:
        return self.rotate(keys, positions, -1.0)

    @property
    def reads(self) -> tuple[Tensor, ...]:
        return tuple(self._frequencies.values())


@dataclass(frozen=True, slots=True)
class IndexCase:
    name: str
    unit_of: Callable[[int], int] = field(default=lambda page_size: page_size)
    """Tokens per unit, by page size."""
    keeps_budget: bool = True
    """Reads at most its budget."""
    fills_budget: bool = True
    """Reads its budget but for a part of a page."""
    profile_of: Callable[[Shape], dict[str, Tensor]] | None = None
    """What calibration would have learned, for indexes that need it."""
    place: tuple[int, int] = (0, 1)
    """The layer's number among those that have an index, and how many these are: of indexes whose layers choose for
    others, one that does."""

    def make(self, params: IndexParams, shape: Shape = (3, 3, 64), settings: str = "") -> Index:
        profile = self.profile_of(shape) if self.profile_of else None
        return make_index(self.name + settings, params, IndexedLayer(1, HalfSplitRope(), profile, *self.place))

    def select(self, index: Index, state: Any, keys: Tensor, q: Tensor, total: int, budget: int) -> Selection:
        """What is read of the first `total` of `keys`, which the state holds: what the index selects, or what it hands
        on to other layers."""
        if index.part is not Part.CHOOSES:
            return index.select(state, q, total, budget)
        reader = PlainReader(keys.float(), torch.zeros_like(keys.float()))
        nothing = keys.float()[:, :0]
        return index.hand_on(state, q, total, budget, reader, (nothing, nothing), 1.0, (total // 3, total // 2))[2]


INDEX_CASES = [
    IndexCase("a2ats", unit_of=lambda page_size: 1, profile_of=a2ats_profile),
    IndexCase("actqkv", fills_budget=False),
    IndexCase("bounds"),
    IndexCase("delta", place=(2, 28)),
    IndexCase("dense", keeps_budget=False),
    IndexCase("leoam", unit_of=lambda page_size: gcd(16, page_size)),
    IndexCase("louiskv", unit_of=lambda page_size: 1),
    IndexCase("magicpig", unit_of=lambda page_size: 1, fills_budget=False),
    IndexCase("oracle", unit_of=lambda page_size: 1),
    IndexCase("rounds", unit_of=lambda page_size: 1, fills_budget=False, place=(14, 28)),
    IndexCase("shadowkv", unit_of=lambda page_size: gcd(8, page_size)),
    IndexCase("spectral", unit_of=lambda page_size: 1),
    IndexCase("tidal", unit_of=lambda page_size: 1, place=(2, 32)),
    IndexCase("window"),
]


def draw(
    shape: Shape, params: IndexParams, *, seed: int = 0, pages: int = PAGES, dtype: Any = torch.float32
) -> tuple[Tensor, Tensor]:
    """Keys with a few that stand out, as in real attention, and a scaled query."""
    groups, repeats, dim = shape
    generator = torch.Generator().manual_seed(seed)
    keys = torch.randn(groups, pages * params.page_size, dim, generator=generator)
    keys[:, torch.randperm(keys.shape[1], generator=generator)[: pages // 4]] *= 3
    q = torch.randn(groups, repeats, dim, generator=generator) * dim**-0.5 * 2
    return keys.to(dtype), q


def forced_pages(params: IndexParams) -> int:
    return params.units(params.sink, params.page_size) + params.units(params.local, params.page_size)


def mass_of(keys: Tensor, q: Tensor, ids: Tensor, unit: int) -> Tensor:
    """Attention mass the selection covers, float64 `[G]`: the mean over a KV head's query heads."""
    weights = torch.softmax(q.double() @ keys.double().transpose(1, 2), -1).mean(1)
    tokens = (ids.unsqueeze(-1) * unit + torch.arange(unit)).flatten(1)
    return weights.gather(1, tokens).sum(1)


class PlainReader:
    """A `Reader` over plain tensors `[G, n, D]`, which counts what it moved."""

    max_tokens = 64
    """Few, so that small selections are read in several calls."""

    def __init__(self, keys: Tensor, values: Tensor) -> None:
        self._keys, self._values = keys, values
        self.keys_moved = self.values_moved = 0

    def keys_values(self, ids: Tensor, unit: int) -> tuple[Tensor, Tensor]:
        tokens = self._tokens(ids, unit)
        self.keys_moved += tokens.shape[1]
        return self._keys.gather(1, tokens.unsqueeze(-1).expand(-1, -1, self._keys.shape[2])), self._get_values(tokens)

    def values(self, ids: Tensor, unit: int) -> Tensor:
        return self._get_values(self._tokens(ids, unit))

    def _tokens(self, ids: Tensor, unit: int) -> Tensor:
        tokens = (ids.unsqueeze(-1) * unit + torch.arange(unit)).flatten(1)
        assert tokens.shape[1] <= self.max_tokens, "more than one call may fetch"
        return tokens

    def _get_values(self, tokens: Tensor) -> Tensor:
        self.values_moved += tokens.shape[1]
        return self._values.gather(1, tokens.unsqueeze(-1).expand(-1, -1, self._values.shape[2]))
