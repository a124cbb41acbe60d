"""Lossy codec of 4 bits a number. At 16 tokens and 64 channels a page takes a third of bf16, a sixth of fp32."""

from __future__ import annotations

from .grouped import GroupedCodec


class Int4Codec(GroupedCodec):
    """Encodes numbers as steps from 0 to 15, two to a byte."""

    name, code, bits = "int4", 2, 4
    serves = "a third of bf16, at an error that a task may notice"
