#!/usr/bin/env bash
# Code that numba keeps on disk computes other bits than the process that compiled it.
#
# A compiled function that LLVM does not inline is there twice: optimised by itself, and once more as a part of the module of its
# caller. The process that compiles the caller calls the first, since that is loaded already; a process that finds the caller in
# the cache has only the second. With leave to reorder sums the two may differ in their last bits. Expected: code read from a
# cache is the code that was put there, so all processes on one machine compute the same from the same input. Seen: the first
# process after the cache was emptied has other results than all after it. It shows where attention is compiled in one function
# that several places call, and not where everything is small enough to be inlined.
# In stratakv: every loop of `kernels/compiled` is forced into its caller (`native.loop`): a session that the first process after
# an update saved is continued by the next to the bit.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet numba==0.68.1 llvmlite==0.50.0 numpy==2.4.6
cat > "$folder/attend.py" <<'PY'
import ctypes
import hashlib
import sys

import llvmlite.binding
import numba
import numpy as np
from numba import carray, cfunc, float32, njit, types

INLINED = {"forceinline": True} if sys.argv[1:] == ["forceinline"] else {}


@njit(fastmath=True, error_model="numpy", **INLINED)
def part(q, keys, values, p, out, scale):
    for h in range(q.shape[0]):
        top = float32(-np.inf)
        for n in range(keys.shape[0]):
            total = float32(0)
            for d in range(keys.shape[1]):
                total += keys[n, d] * q[h, d]
            p[n] = total * scale
            top = max(top, p[n])
        mass = float32(0)
        for n in range(keys.shape[0]):
            p[n] = np.exp(p[n] - top)
            mass += p[n]
        for d in range(keys.shape[1]):
            out[h, d] = float32(0)
        for n in range(keys.shape[0]):
            for d in range(keys.shape[1]):
                out[h, d] += p[n] / mass * values[n, d]


@njit(fastmath=True, error_model="numpy", **INLINED)
def parts(q, keys, values, p, out, scale):
    half = keys.shape[0] // 2
    part(q, keys[:half], values[:half], p, out, scale)
    part(out, keys[half:], values[half:], p, q, scale)
    part(q, keys, values, p, out, scale)


@cfunc(types.void(types.CPointer(types.float32), types.intp, types.intp), cache=True, fastmath=True, error_model="numpy")
def attend(memory, count, dim):
    rows = carray(memory, (2 * count + 9, dim))
    keys, values, p = rows[:count], rows[count : 2 * count], rows[2 * count + 8]
    q, out = rows[2 * count : 2 * count + 4], rows[2 * count + 4 : 2 * count + 8]
    parts(q, keys, values, p, out, float32(0.125))
    parts(out, values, keys, p, q, float32(0.25))
    part(q, keys, values, p, out, float32(0.5))


count, dim = 61, 64
memory = np.random.default_rng(0).standard_normal((2 * count + 9, dim)).astype(np.float32)
attend.ctypes(memory.ctypes.data_as(ctypes.POINTER(ctypes.c_float)), count, dim)
print(hashlib.sha256(memory.tobytes()).hexdigest()[:16], "found" if attend.cache_hits else "compiled", file=sys.stdout)
print("numba", numba.__version__, "on", llvmlite.binding.get_host_cpu_name(), file=sys.stderr)
PY
run() { NUMBA_CACHE_DIR="$folder/kept$1" "$folder/venv/bin/python" "$folder/attend.py" $1 2> "$folder/versions"; }
first=$(run ""); second=$(run ""); third=$(run "")
cat "$folder/versions"
echo "result: $first; $second; $third"
echo "with forceinline: $(run forceinline); $(run forceinline)"
[[ "$first" == *compiled && "$second" == *found && "$second" == "$third" ]]
[[ "${first%% *}" != "${second%% *}" ]] || { echo "kept code computes the same"; exit 1; }
echo "kept code computes other bits than the process that compiled it"
