"""A tree of element-wise boxes (minima and maxima of keys) over runs of tokens, coarser level by level.

A node of level l covers `sizes[l]` tokens from a multiple of that on; its box is the union of its
children's, so a parent's bounds contain theirs. The last node of a level may be incomplete: its box
is then that of the tokens there are, never of ones that were dropped.

Shapes  keys [G, n, D]   boxes of one level [G, ceil(n / size), 2D], maxima first
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ...kernels.page_bounds import page_bounds
from ..index import Rows


class BoxTree:
    """Boxes of every level, in memory.

    Args:
        sizes: tokens per node, finest first, each a multiple of the one before; the first divides a page.
        levels: boxes of each level, finest first.
    """

    def __init__(self, sizes: Sequence[int], levels: Sequence[Tensor]) -> None:
        self.sizes = tuple(sizes)
        self._levels = [Rows(boxes) for boxes in levels]

    @classmethod
    def over(cls, keys: Tensor, sizes: Sequence[int]) -> BoxTree:
        """Build the tree over `keys` `[G, n, D]`, n a multiple of `sizes[0]`. A CPU keeps boxes in fp32, in which it
        scores; elsewhere they keep the keys' dtype. Either way no bound is rounded."""
        tree = cls(sizes, [_boxes(keys[:, :0], 1) for _ in sizes])
        tree.append(keys)
        return tree

    @property
    def num_tokens(self) -> int:
        return self._levels[0].count * self.sizes[0]

    @property
    def levels(self) -> list[Tensor]:
        """Boxes of each level `[G, ceil(n / size), 2D]`, finest first; views."""
        return [rows.data for rows in self._levels]

    def buffer(self, level: int) -> Tensor:
        """The boxes of a level with all that there is room for, `[G, room, 2D]`."""
        return self._levels[level].buffer

    def append(self, keys: Tensor) -> None:
        """Add further keys `[G, n, D]`, n a multiple of `sizes[0]`."""
        before = self.num_tokens
        self._levels[0].append(_boxes(keys, self.sizes[0]))
        self._fold_from(before)

    def truncate(self, num_tokens: int) -> None:
        """Keep the first `num_tokens` tokens, a multiple of `sizes[0]`."""
        before = self.num_tokens
        self._levels[0].truncate(num_tokens // self.sizes[0])
        self._fold_from(min(before, num_tokens))

    def _fold_from(self, num_tokens: int) -> None:
        """Make anew every upper node that ends behind `num_tokens`."""
        for level in range(1, len(self.sizes)):
            whole = num_tokens // self.sizes[level]
            self._levels[level].truncate(whole)
            self._levels[level].append(self._fold(self._levels[level - 1].data, level, whole))

    def up_to(self, num_tokens: int) -> list[Tensor]:
        """Boxes of each level as if only the first `num_tokens` tokens were there. Copies only if there are more."""
        if num_tokens == self.num_tokens:
            return self.levels
        levels = [self._levels[0].data[:, : num_tokens // self.sizes[0]]]
        for level in range(1, len(self.sizes)):
            whole = num_tokens // self.sizes[level]
            levels.append(torch.cat([self._levels[level].data[:, :whole], self._fold(levels[-1], level, whole)], 1))
        return levels

    def _fold(self, children: Tensor, level: int, first: int) -> Tensor:
        """The nodes from number `first` on of `level`, made from all boxes of the level below."""
        fan = self.sizes[level] // self.sizes[level - 1]
        rest = children[:, first * fan :]
        lacking = -rest.shape[1] % fan
        if lacking:  # repeating a box changes no union
            rest = torch.cat([rest, rest[:, -1:].expand(-1, lacking, -1)], 1)
        return union(rest.reshape(len(rest), rest.shape[1] // fan, fan, rest.shape[2]))


def union(boxes: Tensor) -> Tensor:
    """The box around all boxes of a run: `[.., n, 2D]` -> `[.., 2D]`."""
    highest, lowest = boxes.chunk(2, -1)
    return torch.cat([highest.amax(-2), lowest.amin(-2)], -1)


def _boxes(keys: Tensor, size: int) -> Tensor:
    boxes = page_bounds(keys, size)
    return boxes.float() if boxes.device.type == "cpu" else boxes
