"""Two hundred large pages of random bytes, put into a store run by run."""

from __future__ import annotations

import numpy as np
from kv_pages import LARGE, random_pages, text

from stratakv.storage import TieredStore

TEXT = text(LARGE, 200)
PAGES = random_pages(LARGE, 200)


def put(store: TieredStore, first: int, count: int) -> np.ndarray:
    run = slice(first, first + count)
    return store.put(0, TEXT.chains[run], TEXT.tokens[run], PAGES[run])
