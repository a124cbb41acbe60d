"""The second time as the first: a prompt that comes from the store, in this process or a later one, gives the bits that
computing it gave."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_models import FORMS, save_tiny_model

from stratakv.runtime import KVConfig, Runtime

SHORT = [[37], [48], [300], [129, 21], [64, 16, 33]]
LONG = [[600], [529, 37], [560, 64]]
"""Lengths of the prompts that one conversation reads one after another; pages are of 16 tokens."""


def load(folder: Path, path: Path, dtype: str, index: str) -> Runtime:
    kv = KVConfig(path=path, disk_gb=0.05, host_gb=0.2, index=index, budget=112)
    return Runtime.load(folder, device="cpu", dtype=dtype, kv=kv)


def answers(runtime: Runtime, prompts: list[list[int]], *, reuse: bool) -> list[tuple[list[int], torch.Tensor]]:
    """For each conversation: tokens computed in each part, and all logits of its parts and of five steps after each."""
    found = []
    for number, parts in enumerate(prompts):
        sequence, computed, logits = runtime.engine.new_sequence(), [], []
        for part, length in enumerate(parts):
            tokens = ((np.arange(length) * (7 + part) + 31 * number) % 250).astype(np.uint32)
            is_document = part < len(parts) - 1
            done = runtime.engine.prefill(sequence, tokens, want_logits=not is_document, reuse=reuse)
            computed.append(done.num_computed)
            if done.logits is not None:
                logits.append(done.logits)
        for token in range(5):
            logits.append(runtime.engine.decode([sequence], [token])[0])
        sequence.close()
        found.append((computed, torch.stack(logits)))
    return found


def compare(folder: Path, path: Path, dtype: str, index: str, prompts: list[list[int]]) -> int:
    """Tokens that were computed again."""
    with load(folder, path, dtype, index) as runtime:
        cold = answers(runtime, prompts, reuse=False)
        warm = answers(runtime, prompts, reuse=True)
    with load(folder, path, dtype, index) as runtime:
        restarted = answers(runtime, prompts, reuse=True)
    for again in (warm, restarted):
        for (_, logits), (_, expected) in zip(again, cold, strict=True):
            torch.testing.assert_close(logits, expected, rtol=0, atol=0)
    return sum(sum(computed) for computed, _ in warm)


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("family", FORMS)
def test_every_family(family: str, dtype: str, tmp_path: Path) -> None:
    folder = save_tiny_model(tmp_path / "model", family)
    again = compare(folder, tmp_path / "kv", dtype, "bounds", SHORT)
    assert again < sum(map(sum, SHORT)) * 0.6  # of layers with a sliding window only long prompts leave the state


@pytest.mark.parametrize("index", ["spectral", "shadowkv", "magicpig", "leoam", "oracle"])
def test_every_index(index: str, tiny_llama: Path, tmp_path: Path) -> None:
    again = compare(tiny_llama, tmp_path / "kv", "bfloat16", index, LONG)
    assert again < sum(map(sum, LONG)) / 10
