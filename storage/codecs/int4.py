"""Keys by channel and values by token, in 4 bits a number (as KIVI, arXiv 2402.02750)."""

from __future__ import annotations

from .grouped import GroupedCodec


class Int4Codec(GroupedCodec):
    """Idea   numbers that share a minimum and a scale become steps from 0 to 15, two to a byte.
    For    a third of bf16's room, at an error that a task may notice.
    State  codes, and 4 bytes per group: at 16 tokens and 64 channels 5.25 bits a number.
    Cost   a few passes over the page, to encode and to decode.
    Differs  values share a scale by 64 channels, and there is no residual but what memory holds; see `kivi`.
    """

    name, code, bits = "int4", 2, 4
