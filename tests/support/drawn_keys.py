"""Keys drawn for tests of trees and chunks: alike in runs, unlike, turning slowly; and queries that go with them."""

from __future__ import annotations

import torch
from torch import Tensor


def whole_numbers(*shape: int, seed: int, most: int = 6) -> Tensor:
    """So small that every sum of their products is exact in fp32, in any order."""
    return torch.randint(-most, most + 1, shape, generator=torch.Generator().manual_seed(seed)).float()


def clustered(tokens: int, *, groups: int = 2, dim: int = 32, run: int = 256, seed: int = 0) -> Tensor:
    """Runs of alike keys: a direction for each run, and a little of each key's own."""
    centres = whole_numbers(groups, -(-tokens // run), dim, seed=seed, most=100)
    return centres.repeat_interleave(run, 1)[:, :tokens] + whole_numbers(groups, tokens, dim, seed=seed + 1, most=1)


def peaked(tokens: int, *, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Unlike keys; each page's query asks for one token out of eight, wherever they are."""
    generator = torch.Generator().manual_seed(seed)
    keys = torch.randn(2, tokens, 32, generator=generator)
    theme = torch.randn(2, 1, 32, generator=generator)
    keys[:, torch.randperm(tokens, generator=generator)[: tokens // 20]] += theme
    return keys, theme.unsqueeze(1).expand(-1, 3, tokens // 16, -1).contiguous() / 4


def smooth(tokens: int, *, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Keys that turn slowly along the sequence; queries ask for a direction each."""
    generator = torch.Generator().manual_seed(seed)
    angles = torch.arange(tokens).view(1, -1, 1) / 300 * torch.rand(2, 1, 32, generator=generator)
    return angles.sin() * 2, torch.randn(2, 3, tokens // 16, 32, generator=generator) / 4
