"""Lossy: 4 bits a number. With 16 tokens and 64 channels a third of bf16, a sixth of fp32."""

from __future__ import annotations

from .grouped import GroupedCodec


class Int4Codec(GroupedCodec):
    """Steps from 0 to 15, two to a byte."""

    code, name, bits = 2, "int4", 4
