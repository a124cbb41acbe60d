"""The room that a record takes in LMDB's file, which is more than its bytes.

A tree page has 4 KiB. A record longer than half of one gets pages of its own, and the tree a line; shorter ones share
tree pages, which are filled to less than two thirds where keys come in no order.
"""

from __future__ import annotations

_PAGE, _HEADER = 4096, 16
_NODE = 28
"""Bytes of a record's key and of LMDB's words about it, rounded up."""
_FILLED = 0.62
_LINE = 160
"""Bytes that a record with pages of its own takes in the tree."""


def stored_bytes(record_bytes: int) -> int:
    """Bytes of the file that a record of this length takes."""
    node = record_bytes + _NODE
    if node > (_PAGE - _HEADER) // 2:
        return -(-(record_bytes + _HEADER) // _PAGE) * _PAGE + _LINE
    return int(_PAGE / ((_PAGE - _HEADER) // node) / _FILLED)
