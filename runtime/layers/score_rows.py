"""How an index chooses, as rows of a compiled step's table: tables of scores, scores, the choice.

Shapes  G KV heads, R query heads each, D head dim
"""

from __future__ import annotations

import numpy as np

from ...kernels.compiled import record as r
from ...retrieval.scoring import BoundScoring, CodeScoring, Counts, Scoring
from .attend_rows import KV_KINDS, Attending

BOUNDS_SPAN, CODES_SPAN = 256, 2048
"""Units of a part. They follow from nothing but must never follow from the machine: sums are cut here."""


def fill_choice(rows: np.ndarray, at: Attending, scoring: Scoring, counts: Counts) -> None:
    """Fill in the rows that choose, int64 `[3, WIDTH]`: tables, scores, choice. All but C_IDS, where what is chosen
    goes; rows that are not needed have no items."""
    rows[:] = 0
    tables, scores, choice = rows
    repeats = at.q.shape[0] // at.groups
    span = CODES_SPAN if isinstance(scoring, CodeScoring) else BOUNDS_SPAN
    units, parts = scoring.num_units, -(-scoring.num_units // span)
    at_scores = at.room.floats("scores", at.groups * repeats * units)
    at_tops = at.room.floats("tops", at.groups * repeats * parts * 2)
    scores[[r.OPERATION, r.ITEMS, r.BARRIER, r.MARK]] = 0, at.groups * parts, 1, r.M_SCORES
    scores[[r.S_REPEATS, r.S_DIM, r.S_Q]] = repeats, at.q.shape[1], at.q.data_ptr()
    scores[[r.S_SCALE, r.S_UNITS, r.S_SPAN]] = at.scale_bits, units, span
    scores[[r.S_SCORES, r.S_ROOM, r.S_TOPS]] = at_scores, units, at_tops
    if isinstance(scoring, CodeScoring):
        _codes(tables, scores, at, scoring)
    elif isinstance(scoring, BoundScoring):
        bounds = scoring.bounds
        scores[r.OPERATION] = at.operations.score_bounds.address
        scores[r.MEMORY] = at.operations.score_bytes(repeats, at.q.shape[1], span)
        scores[[r.S_BOUNDS, r.S_HEAD_PITCH, r.S_KIND]] = bounds.data_ptr(), bounds.stride(0), KV_KINDS[bounds.dtype]
    choice[[r.OPERATION, r.ITEMS, r.BARRIER]] = at.operations.choose.address, at.groups, 1
    choice[[r.MARK, r.MEMORY]] = r.M_CHOICE, at.operations.choice_bytes(units, parts)
    choice[[r.C_REPEATS, r.C_UNITS, r.C_SPAN]] = repeats, units, span
    choice[[r.C_SCORES, r.C_ROOM, r.C_TOPS]] = at_scores, units, at_tops
    choice[[r.C_COUNT, r.C_SINK, r.C_LOCAL]] = counts


def _codes(tables: np.ndarray, scores: np.ndarray, at: Attending, scoring: CodeScoring) -> None:
    codes, anchors, books = scoring.codes, scoring.anchors, scoring.codebooks
    parts, width, fours = codes.shape[2], books.shape[2], -(-int(scores[r.S_REPEATS]) // 4)
    scores[r.OPERATION] = at.operations.score_codes.address
    scores[r.MEMORY] = at.operations.score_bytes(int(scores[r.S_REPEATS]), at.q.shape[1], CODES_SPAN, width)
    scores[[r.S_BOUNDS, r.S_HEAD_PITCH]] = codes.data_ptr(), codes.stride(0)
    scores[[r.S_CODE_PARTS, r.S_CODE_DIM, r.S_BASIS, r.S_BOOKS]] = (
        parts, width, scoring.basis.data_ptr(), books.data_ptr(),
    )  # fmt: skip
    scores[r.S_TABLES] = at.room.floats("tables", at.groups * fours * parts * 1024)
    scores[[r.S_ANCHORS, r.S_ANCHOR_PITCH, r.S_SEGMENT]] = anchors.data_ptr(), anchors.stride(0), scoring.segment
    tables[:] = scores
    tables[[r.OPERATION, r.ITEMS, r.BARRIER]] = at.operations.make_tables.address, at.groups * parts, 1
    tables[r.MARK] = r.M_TABLES
