"""Kernels compile to machine code for GPUs that are not there, and the package works without Triton."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

from places import ROOT

TARGETS = (80, 90)
SMALL_CARD = 99 * 1024
"""Shared memory that a block may have at most on consumer Ampere, Ada and Blackwell cards."""


def test_every_kernel_compiles_for_ampere_and_hopper(tmp_path: Path) -> None:
    """In a process of its own, without the interpreter; the cache is empty, so that all is truly compiled. Each case is
    for one of the two in turn, unless EVERY_CARD is set (`make kernels`)."""
    in_turn = [] if os.environ.get("EVERY_CARD") else ["--in-turn"]
    without = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    run = subprocess.run(
        [sys.executable, "-W", "error", ROOT / "tests/support/compile_kernels.py", *in_turn, *map(str, TARGETS)],
        env={**without, "TRITON_CACHE_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    made = [json.loads(line) for line in run.stdout.splitlines()]
    assert all(one["cubin"] > 0 and one["ptx"] for one in made)
    assert [one for one in made if one["shared"] > SMALL_CARD] == []
    written = {
        name for path in (ROOT / "kernels").glob("*.py") for name in re.findall(r"def (\w+_kernel)\(", path.read_text())
    }
    assert {one["kernel"] for one in made} == written
    assert in_turn or len({(one["kernel"], one["target"]) for one in made}) == len(written) * len(TARGETS)
    assert {one["target"] for one in made} == set(TARGETS)


NO_TRITON = """
import sys
sys.modules["triton"] = None
import importlib, torch
for name in sys.argv[1:]:
    importlib.import_module("stratakv.kernels." + name)
from stratakv.kernels.decode_attention import decode_attention
ones = torch.ones(1, 1, 8)
print(float(decode_attention(ones, [(ones, ones)], scale=1.0)[0].sum()))
"""


def test_kernels_do_without_triton() -> None:
    """As on platforms that it has no wheels for."""
    names = [path.stem for path in (ROOT / "kernels").glob("*.py")]
    run = subprocess.run([sys.executable, "-c", NO_TRITON, *names], capture_output=True, text=True, check=True)
    assert run.stdout.split() == ["8.0"]
