"""Codecs: how a page's bytes look on the disk edge.

A codec is one file with a class, one line in `registry.CODECS` and one line in the tests' list. `raw` and `zstd` give
back every bit, the others do not.
"""

from __future__ import annotations

from .codec import Codec
from .registry import CODECS, LOSSLESS, make_codec

__all__ = ["CODECS", "LOSSLESS", "Codec", "make_codec"]
