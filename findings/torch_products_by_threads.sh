#!/usr/bin/env bash
# A product's bits depend on how many threads compute it.
#
# F.linear on a CPU goes to MKL (fp32) or oneDNN (bf16). Where a weight is wide and the rows are few or some hundred, these cut the
# sum over columns between threads as well, and add the parts up. Which shapes they cut so differs between kinds of processors and
# dtypes, and no setting of PyTorch's says otherwise: torch.use_deterministic_algorithms(True) changes nothing here. Expected: with
# deterministic algorithms the same input gives the same bits on one machine. Seen: it does with one number of threads, and not
# with another. So a prompt that is read with fewer threads, since the machine is busy, has other keys and values in its last bits.
# In stratakv: prefill, and steps that PyTorch computes, have all threads, always; only compiled steps, whose sums are cut by
# tokens and rows, are taken by as many threads as the machine has to spare (`runtime/process/spare_cores.py`).
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6
"$folder/venv/bin/python" - <<'PY'
import torch
import torch.nn.functional as F

torch.use_deterministic_algorithms(True)
print(f"torch {torch.__version__}, {torch.backends.cpu.get_cpu_capability()}")
torch.manual_seed(0)
differ = 0
for dtype in (torch.float32, torch.bfloat16):
    for rows, columns in ((896, 4864), (576, 1536), (2048, 8192)):
        weight = torch.randn(rows, columns).to(dtype)
        for tokens in (64, 128, 256):
            x, found = torch.randn(tokens, columns).to(dtype), {}
            for threads in (1, 2, 3, 4):
                torch.set_num_threads(threads)
                once, again = F.linear(x, weight), F.linear(x, weight)
                assert torch.equal(once, again), "not even the same number of threads gives the same bits"
                found[threads] = once
            others = [threads for threads in found if not torch.equal(found[threads], found[1])]
            differ += bool(others)
            if others:
                print(f"{dtype}: {tokens} x {columns} by {columns} x {rows}: other bits than with 1 thread: {others}")
print(f"{differ} of 18 products depend on the number of threads")
raise SystemExit(differ == 0)
PY
