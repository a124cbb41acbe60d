"""The placements under contract: a new placement adds one line here and has the whole suite."""

from __future__ import annotations

PLACEMENT_CASES = [
    "cake",
    "dynamickv",
    "fastgen",
    "h2o",
    "keyformer",
    "kvcrush",
    "l2norm",
    "lagkv:lag=32",
    "pyramidkv",
    "razor",
    "scissorhands",
    "scope:reply=12:recent=8",
    "snapkv",
    "squeeze",
    "treekv",
    "vatp",
]
