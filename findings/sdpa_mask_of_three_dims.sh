#!/usr/bin/env bash
# PyTorch's attention on a CPU leaves its fused operator for a mask of three dimensions.
#
# A mask is the same for all heads, so [T, S], [1, T, S] and [1, 1, T, S] say one thing of queries [1, H, T, D]. Expected: the same way of
# computing. Seen: of the three, [1, T, S] alone is computed by plain operations, which hold all scores of all heads in memory and take
# several times as long; results agree to rounding, so nothing tells.
# In stratakv: `kernels/prefill_attention.py` (`masked_attention`) takes masks of two dimensions. Before it did, prefill of sliding layers took a
# third longer than transformers' (docs/decisions/0049).
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 numpy
"$folder/venv/bin/python" - <<'PY' 2>/dev/null
import sys
import time

import torch
import torch.nn.functional as F
from torch.profiler import ProfilerActivity, profile

torch.set_num_threads(1)
torch.manual_seed(0)
heads, rows, dim = 8, 1024, 128
q, k, v = torch.randn(3, 1, heads, rows, dim)
mask = torch.ones(rows, rows, dtype=torch.bool).tril()


def attend(mask):
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)


def operator(mask):
    with profile(activities=[ProfilerActivity.CPU]) as seen:
        attend(mask)
    return next(event.key for event in seen.key_averages() if event.key.startswith("aten::_scaled_dot_product"))


def seconds(mask):
    times = []
    for _ in range(5):
        started = time.perf_counter()
        attend(mask)
        times.append(time.perf_counter() - started)
    return sorted(times)[2]


print("torch", torch.__version__)
used, exact = {}, attend(mask)
for shaped in (mask, mask[None], mask[None, None]):
    used[shaped.dim()] = operator(shaped)
    off = float((attend(shaped) - exact).abs().max())
    print(f"mask {list(shaped.shape)}: {used[shaped.dim()]}, {1e3 * seconds(shaped):.0f} ms, off by {off:.0e}")
sys.exit(not (used[2] == used[4] != used[3] and used[3].endswith("_math")))
PY
echo "a mask of three dimensions is not fused"
