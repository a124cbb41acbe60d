"""Pages of random numbers in 16 bits, which every codec can write, and a clock that is set by hand."""

from __future__ import annotations

import torch
from kv_pages import text

from stratakv.storage import PageLayout, page_key
from stratakv.storage.codecs import CODECS, LOSSLESS

LAYOUT = PageLayout(num_heads=2, page_size=16, head_dim=64, dtype="bfloat16")
COUNT = 120
TEXT = text(LAYOUT, COUNT)
KEYS = [page_key(0, chain) for chain in TEXT.chains]
NUMBERS = torch.randn(COUNT, LAYOUT.page_bytes // 2, generator=torch.Generator().manual_seed(0))
PAGES = NUMBERS.to(torch.bfloat16).view(torch.uint8)
ZSTD, INT4 = 1, 2
LOSSY = sorted(set(CODECS) - set(LOSSLESS))


class Clock:
    """Time that passes when it is told to."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now
