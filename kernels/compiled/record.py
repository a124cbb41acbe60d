"""A step as one list of operations: a table of int64, a row for each operation, that compiled threads work through.

    row     OPERATION | ITEMS | BARRIER | MARK | fields of the operation ...

All threads go through the rows together. They share an operation's items among them, whoever is free takes the next;
after a row with BARRIER set, they wait until all items of all rows before it are done. What an item computes does not
depend on who takes it, so results do not depend on the number of threads.

Addresses are of fp32 unless something else is said. A number that is not whole stands as the bits of its fp64.

Shapes  B sequences, C columns of a matrix, N its rows, H query heads, G KV heads, R = H / G, D head dim, L page size
"""

from __future__ import annotations

import numpy as np


def bits(number: float) -> int:
    """A number as a row holds it."""
    return int(np.float64(number).view(np.int64))


WIDTH = 48
"""Columns of the table."""
OPERATION, ITEMS, BARRIER, MARK, PREPARE, MEMORY = range(6)
"""OPERATION: address of what is done to an item; PREPARE: of what every thread does for itself before, or 0.
MARK: where in `times` the operation's time is added, one of the marks below. MEMORY: bytes of its own that a thread
needs."""
(
    NO_MARK, M_QKV, M_HEADS, M_TABLES, M_SCORES, M_CHOICE, M_ATTENTION, M_OUT, M_GATE_UP, M_DOWN, M_HEAD, M_SHARPEN,
) = range(12)  # fmt: skip
"""What an operation of a step is. Rows up to one with BARRIER are timed together, under its mark."""

# PRODUCT: y[b, :] = W x[b, :] + bias, x made anew by every thread from what earlier operations left. An item is CHUNK
# rows of W.
P_BATCH, P_ROWS, P_COLUMNS, P_CHUNK = range(6, 10)
P_KIND, P_WEIGHT, P_SCALE, P_BIAS = range(10, 14)
"""P_KIND: how the weight is written, one of the kinds below. P_SCALE: a number for each row that what comes of it is
multiplied with; P_BIAS: one that is added then. 0 if there are none."""
P_Y, P_STRIDE = range(14, 16)
"""y[b] begins at P_Y + 4 * b * P_STRIDE."""
P_INPUT = 16
"""What x is made of:
PLAIN   x = A [B, C]
SUM     x = norm(A + norm(D))   norms and D where they are not 0; where D is not, the sum goes to P_SUM [B, C] as well.
        P_FACTOR: what D is multiplied by where it is not normed. P_CENTRED: the outer norm is around the mean.
        P_PARALLEL: x = norm(A), whatever the sum. P_TOTAL: what the sum is multiplied by, otherwise
GATED   x = act(A[:, :C]) * A[:, C:], as P_ACT says
MERGED  x = the parts that ATTEND left, put together: A + 4 * b * P_ROOM is [G, P_PARTS[b], R, 2 + D]. P_D: [H], the
        scores of one part more for each head, whose value is zero; 0: there is none
"""
PLAIN, SUM, GATED, MERGED = range(4)
P_A, P_D, P_SUM, P_NORM, P_NORM_D, P_EPS = range(17, 23)
P_ACT = 23
P_PARTS, P_ROOM, P_DIM, P_GROUPS = range(24, 28)
"""P_PARTS: int64 [B]."""
P_SAME = 28
"""P_SAME: x is that of the product before. PREPARE may be 0, too, where both take x the same way."""
P_CODE, P_ROUNDED = range(29, 31)
"""Of blocks: the address of their product (`blocks.rows`); 1: it takes x rounded to 16 bits."""
P_FACTOR, P_CENTRED, P_PARALLEL = range(31, 34)
P_IDS, P_SHARES, P_CHOSEN = range(34, 37)
"""Of experts: int64 [B, K] and [B, K], as ROUTE leaves them; K. P_WEIGHT is then int64 [E], the address of each one's
weight, and so is P_BIAS where it is not 0; y is [B, K, P_STRIDE] (`each`) or [B, P_STRIDE] (`together`: P_BATCH is
B * K there, and P_ROOM the bytes from the beginning of a thread's memory to room for the rows of an item). `together`
adds what is at P_D [B, P_ROWS], times the sigmoid of what is at P_NORM_D [B], where they are not 0."""
P_TOTAL = 37
"""Of SUM."""
P_GATES, P_GATE_STRIDE, P_GATE_DIM = range(38, 41)
"""Of PLAIN and MERGED: x is multiplied by the sigmoid of what stands at P_GATES + 4 * b * P_GATE_STRIDE, P_GATE_DIM
numbers and as many that are none of them. 0: by nothing."""
P_LIMIT, P_SLOPE = range(41, 43)
"""Of CLAMPED."""
SILU, GELU_TANH, CLAMPED = range(3)
"""CLAMPED: x = min(g, limit), x * sigmoid(slope * x) * (1 + u within the limit) of g = A[:, :C] and u = A[:, C:]."""
F32, BF16, I8, Q8_0, Q4_0, Q4_1, Q5_0, Q5_1, Q4_K, Q5_K, Q6_K, MXFP4 = range(12)
"""Kinds of weights."""
BLOCKS = {
    F32: (1, 4), BF16: (1, 2), I8: (32, 32),
    Q8_0: (32, 34), Q4_0: (32, 18), Q4_1: (32, 20), Q5_0: (32, 22), Q5_1: (32, 24),
    Q4_K: (256, 144), Q5_K: (256, 176), Q6_K: (256, 210), MXFP4: (32, 17),
}  # fmt: skip
"""The numbers of a block of each kind, and its bytes. GGUF's own kinds have several with a common scale; a row of I8
has one."""

# ROUTE: the experts of each sequence. An item is a b.
R_EXPERTS, R_CHOSEN = range(6, 8)
R_LOGITS, R_IDS, R_SHARES = range(8, 11)
"""[B, E]; int64 [B, K]; [B, K], softmax over all experts."""
R_RENORMALISES, R_FACTORS = range(11, 13)
"""R_RENORMALISES: shares are divided by their sum. R_FACTORS: [E], what they are multiplied by then; 0: nothing."""

# BOTH: y[b] = norm(x[b]) + norm(d[b]), as vectors P_A and P_D [B, C] with norms P_NORM and P_NORM_D [C], to P_Y [B, C].
# An item is a b. P_BATCH, P_COLUMNS and P_EPS are as for products.

# WIDEN: rows of a weight as fp32. An item is W_CHUNK of them.
W_WEIGHT, W_COLUMNS, W_COUNT, W_CHUNK = range(6, 10)
W_IDS = 10
"""int64 [W_COUNT]: which rows; 0: the first W_COUNT."""
W_OUT = 11
"""[W_COUNT, W_COLUMNS]."""
W_PAIRS = 12
"""The width of a head whose rows stand in pairs (2i, 2i + 1): they are written as halves (i, i + W_PAIRS / 2). 0: rows
are written as they stand."""

# SHARPEN: the highest logits y[b] = W norm(x[b]) + bias again, from a weight that is not rounded. An item is a b.
T_BATCH, T_ROWS, T_COLUMNS, T_COUNT = range(6, 10)
"""B, V, C; how many are computed again, at most V."""
T_LOGITS, T_HIDDEN, T_NORM, T_EPS = range(10, 14)
"""[B, V], in which they are replaced; x [B, C]; [C]."""
T_WEIGHT, T_KIND, T_BIAS = range(14, 17)
"""[V, C] in F32 or BF16; [V], or 0."""
T_CENTRED = 17
"""The norm is around the mean."""

# HEADS: norms and rotation of q and k, and where k and v belong. An item is one head of one sequence: H + G of q and k,
# then G of v.
H_BATCH, H_HEADS, H_GROUPS, H_DIM = range(6, 10)
"""H_GROUPS: 0 where a layer has queries alone."""
H_QKV = 10
"""[B, H + 2 G, D], what a product left."""
H_Q = 11
"""[B, H, D]: the rotated q; not scaled."""
H_COS, H_SIN, H_ROTARY = range(12, 15)
"""[B, H_ROTARY], tables of `lean_layer.for_lean`; H_ROTARY 0: not rotated."""
H_NORM, H_EPS, H_WIDE = range(15, 18)
"""[H + G, D], a norm of each head; 0: none. H_WIDE: one norm over all heads of q, one over those of k."""
H_PLACES = 18
"""int64 [B, 4]: address of the new token's k of the first head; bytes from there to the next head, and to v; their
kind, F32 or BF16."""
H_PAIRS, H_FACTORS = range(19, 21)
"""H_FACTORS: [B], what each sequence's queries are multiplied by behind their rotation; 0: nothing.
H_PAIRS: of the first so many numbers of q and k in H_QKV (2i, 2i + 1) belong together, not (i, i + H_PAIRS / 2)."""
H_NORMS_VALUES, H_KEYS_ARE_VALUES = range(21, 23)
"""H_NORMS_VALUES: each head of v is normed, without a weight. H_KEYS_ARE_VALUES: v is k before its norm, and H_QKV,
[B, H + G, D], has no rows for it."""
H_GATED = 23
"""H_QKV is [B, 2 H + 2 G, D]: behind each head of q stands its gate."""

# DELTA: a delta net's token (`kernels.delta_rule`): convolution, rule, and the gated norm of what it reads. An item is
# one value head of one sequence.
D_BATCH, D_HEADS, D_KEY, D_VALUE, D_CHANNELS, D_TAPS = range(6, 12)
"""B, N, the widths of keys and values; K taps of each channel."""
D_IN, D_STRIDE = range(12, 14)
"""What products left, of sequence b at D_IN + 4 * b * D_STRIDE."""
D_PLACES = 14
"""int64 [N, 10], of each head: where in there its q, k, v, z, b and a begin; the channels of its q, k and v; 1: it is
the first with that key."""
D_STATES = 15
"""int64 [B, 4]: the addresses of columns [K - 1, channels] before and behind this token, of the matrices [N, D_KEY,
D_VALUE] before and behind."""
D_WEIGHTS, D_RATES, D_STEPS = range(16, 19)
"""[channels, K], the last one is the present token's; [N], minus how fast a head forgets; [N], what is added to a."""
D_NORM, D_EPS, D_SCALE = range(19, 22)
"""[D_VALUE]; of queries."""
D_OUT = 22
"""[B, N, D_VALUE]."""

# CONVOLVE: a short convolution's token, gated before and behind. An item is K_CHUNK channels of one sequence.
K_BATCH, K_CHANNELS, K_TAPS, K_CHUNK = range(6, 10)
K_IN, K_OUT = range(10, 12)
"""[B, 3, channels]: gate before, gate behind, x; [B, channels]."""
K_STATES = 12
"""int64 [B, 2]: the addresses of columns [K - 1, channels] before and behind this token."""
K_WEIGHTS, K_BIAS = range(13, 15)
"""[channels, K]; [channels], or 0."""

# INPUTS: what each layer reads of a token besides, norm(root * made) and factor * row, added and divided by the root of
# 2. An item is one layer of one sequence.
I_BATCH, I_LAYERS, I_WIDTH = range(6, 9)
"""B; N; P, the numbers that a layer reads."""
I_MADE, I_ROWS, I_OUT = range(9, 12)
"""[B, N, P]; [B, N, P]; [N, B, 2, P], of which the second P numbers are written."""
I_NORM, I_EPS, I_ROOT, I_FACTOR = range(12, 16)
"""[P]."""

# Of one sequence and layer: what to read of G * L-token pages, or of one run of rows.
# `score_bounds`: scores of S_SPAN units an item, of one KV head; items are G times the parts of S_UNITS.
# `score_codes`: the same of `spectral`. `make_tables` comes before it with the same fields: G * M items.
S_REPEATS, S_DIM = range(6, 8)
S_Q, S_SCALE = range(8, 10)
"""[G, R, D] rotated, and what it is multiplied with."""
S_UNITS, S_SPAN = range(10, 12)
"""Units there are, at least one, and units of a part; the last part may have fewer."""
S_SCORES, S_ROOM = range(12, 14)
"""[G, R, S_ROOM]: 2 to the power of (score / ln 2 - maximum of the part)."""
S_TOPS = 14
"""[G, R, parts, 2]: the maximum of each part, of score / ln 2, and the sum of the powers."""
S_BOUNDS, S_HEAD_PITCH, S_KIND = range(15, 18)
"""`score_bounds`: [G, units, 2 D], heads S_HEAD_PITCH numbers apart: the largest and the smallest key of a unit, in F32
or BF16.
`score_codes`: codes uint8 [G, units, M] at S_BOUNDS, heads S_HEAD_PITCH bytes apart."""
S_CODE_PARTS, S_CODE_DIM, S_BASIS, S_BOOKS = range(18, 22)
"""M; W / M; of_queries turned to [G, W, D]; codebooks turned to [G, M, W / M, 256]."""
S_TABLES = 22
"""What `make_tables` leaves for `score_codes`: [G, ceil(R / 4), M, 256, 4], best at a multiple of 64 bytes."""
S_ANCHORS, S_ANCHOR_PITCH, S_SEGMENT = range(23, 26)
"""bf16 [G, segments, D], heads S_ANCHOR_PITCH numbers apart; units per anchor."""

# `choose`: the best units of each KV head by the mean, over its query heads, of their softmax. An item is a KV head.
C_REPEATS, C_UNITS, C_SPAN = range(6, 9)
C_SCORES, C_ROOM, C_TOPS = range(9, 12)
"""What SCORE left."""
C_COUNT, C_SINK, C_LOCAL = range(12, 15)
"""Ids wanted, at most C_UNITS; how many of them are the first and the last units whatever their scores."""
C_IDS = 15
"""int32 [G, C_COUNT], ascending."""

# ATTEND: one softmax over the chosen units and the rows behind them. An item is A_SPAN tokens of one KV head, or the
# rows behind.
A_GROUPS, A_REPEATS, A_DIM, A_PAGE = range(6, 10)
A_Q, A_SCALE = range(10, 12)
A_IDS, A_COUNT, A_UNIT = range(12, 15)
"""int32 [G, A_COUNT] units of A_UNIT tokens, which divides A_PAGE; 0: the first A_COUNT units."""
A_PLACES = 15
"""int64 [pages]: the address of each page."""
A_OWN = 16
"""1: A_PLACES is int64 [G, A_COUNT], the address of each chosen unit's k in that head."""
A_PITCH, A_V_AFTER, A_KV_KIND = range(17, 20)
"""Bytes from one head to the next of a page, and from k to v; F32 or BF16."""
A_TAIL, A_TAIL_LEN, A_TAIL_PITCH, A_TAIL_V_AFTER = range(20, 24)
"""The rows behind: address of the first head's k. They are of A_TAIL_KIND."""
A_SPAN, A_TAIL_SPAN, A_TAIL_KIND = range(24, 27)
"""Tokens of a part; rows of a part of those behind, which come last."""
A_OUT, A_PARTS, A_FIRST = range(27, 30)
"""[G, A_PARTS, R, 2 + D]: maximum of the scores, sum of their powers, values weighted with those.
A_FIRST: the part that this row's first one is."""
