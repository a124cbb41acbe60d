"""All lossy codecs, for the contract that each must keep, and pages to put through them."""

from __future__ import annotations

import numpy as np
import torch

from stratakv.storage import PageLayout
from stratakv.storage.codecs.codec import NamedCodec

LOSSY = {
    "int8": (9.25, 0.006),
    "int4": (5.25, 0.085),
    "kivi": (3.5, 0.4),
    "kivi:bits=4": (5.5, 0.08),
    "rotatekv": (2.25, 0.51),
    "rotatekv:bits=3": (3.25, 0.22),
    "rotatekv:bits=4": (4.25, 0.102),
    "logquant": (6.69, 0.335),
    "logquant:bits=4": (8.19, 0.066),
    "zipcache": (5.01, 0.255),
    "zipcache:salient=100": (5.76, 0.081),
    "kvquant": (4.57, 0.16),
    "kvquant:bits=2": (3.53, 0.37),
    "kvquant:bits=4": (5.63, 0.088),
}
"""Spec -> bits per number, tables and settings included, at 16 tokens of 64 channels; and the largest error of pages of
normal numbers, root mean square over root mean square. One line per codec and number of bits."""
PROFILE = {f"kvquant.{bits}": np.tile(np.linspace(-0.9, 0.9, 2**bits), (2, 1)).astype(np.float16) for bits in (2, 3, 4)}
"""What a codec may have learned of a layer: even steps, so that every machine has the same."""
DTYPES = ("float32", "bfloat16", "float16")


def layout(heads: int = 2, tokens: int = 16, channels: int = 64, dtype: str = "float32", sides: int = 2) -> PageLayout:
    return PageLayout(
        num_heads=heads, page_size=tokens, head_dim=channels, dtype=dtype, value_dim=None if sides == 2 else channels
    )


def raw_of(numbers: np.ndarray, shape: PageLayout) -> np.ndarray:
    """A page's bytes of numbers `[G, S, L, D]`."""
    page = torch.from_numpy(np.ascontiguousarray(numbers, dtype=np.float32)).to(getattr(torch, shape.dtype))
    return page.reshape(-1).view(torch.uint8).numpy().copy()


def numbers_of(raw: np.ndarray, shape: PageLayout) -> np.ndarray:
    """float64 `[G, S, L, D]`."""
    flat = torch.from_numpy(raw).view(getattr(torch, shape.dtype)).double().numpy()
    return flat.reshape(shape.num_heads, shape.sides, shape.page_size, shape.head_dim)


def there_and_back(codec: NamedCodec, raw: np.ndarray) -> np.ndarray:
    out = np.full(raw.nbytes, 0xAA, dtype=np.uint8)
    payload = codec.encode(raw)
    assert len(payload) == codec.payload_bytes
    codec.decode(memoryview(payload), out)
    return out


def normal(shape: PageLayout, seed: int = 0) -> np.ndarray:
    """Normal numbers `[G, S, L, D]`, float64."""
    size = (shape.num_heads, shape.sides, shape.page_size, shape.head_dim)
    return np.random.default_rng(seed).standard_normal(size)


def error(codec: NamedCodec, numbers: np.ndarray, shape: PageLayout) -> np.ndarray:
    """What comes back of numbers `[G, S, L, D]`, less what was put in; float64."""
    raw = raw_of(numbers, shape)
    return numbers_of(there_and_back(codec, raw), shape) - numbers_of(raw, shape)


def relative(off: np.ndarray, numbers: np.ndarray) -> float:
    """Root mean square over root mean square."""
    return float(np.sqrt(np.square(off).mean() / np.square(numbers).mean()))


def nearest_steps(group: np.ndarray, bits: int) -> np.ndarray:
    """Every number as the nearest of 2**bits even steps from the least to the largest, by hand."""
    levels = np.linspace(group.min(), group.max(), 2**bits)
    return np.array([levels[np.abs(levels - number).argmin()] for number in group])


def agree(found: np.ndarray, expected: np.ndarray, off: float) -> None:
    """Equal but for what fp16 scales round, and for ties that they decide otherwise."""
    assert (np.abs(found - expected) < off).mean() > 0.99, np.abs(found - expected).max()
