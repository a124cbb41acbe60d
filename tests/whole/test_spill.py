"""Where pages lie changes no bit: the same logits at every tier split."""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import VOCABULARY, save_tiny_model

from stratakv.runtime import KVConfig, Runtime
from stratakv.runtime.layers.workspace import Workspace
from stratakv.storage import PageLayout

TURNS = (600, 90, 33)
STEPS = 9
PAGE = 8
WORKSPACE = max(
    Workspace.bytes_for(PageLayout(num_heads=2, page_size=PAGE, head_dim=8, dtype=dtype), 512)
    for dtype in ("float32", "bfloat16")
)


@functools.cache
def model() -> Path:
    return save_tiny_model(Path(tempfile.mkdtemp(prefix="stratakv-test-")), max_position_embeddings=2048)


def run(index: str, dtype: str = "float32", **caps: Any) -> tuple[torch.Tensor, dict[str, Any]]:
    """Logits `[turns * (1 + steps), vocabulary]` of a fixed conversation, and the store's figures."""
    rng = np.random.default_rng(7)
    found = []
    kv = {"index": index, "budget": 96, "sink": 8, "local": 16, "page_size": PAGE}
    with (
        tempfile.TemporaryDirectory() as folder,
        Runtime.load(model(), dtype=dtype, kv=KVConfig(path=folder, **kv, **caps)) as runtime,
    ):
        sequence = runtime.engine.new_sequence()
        for turn in TURNS:
            logits = runtime.engine.prefill(sequence, rng.integers(3, VOCABULARY, turn).astype(np.uint32)).logits
            assert logits is not None
            for _ in range(STEPS):
                found.append(logits)
                logits = runtime.engine.decode([sequence], [int(logits.argmax())])[0]
            found.append(logits)
        if caps.get("disk_gb") != 0:
            runtime.store.flush()
        runtime.store.check_integrity()
        stats = runtime.stats()
        for tier in stats["tiers"].values():
            assert tier["used_bytes"] <= tier["cap_bytes"]
    return torch.stack(found), stats


@functools.cache
def unspilled(index: str, dtype: str = "float32") -> torch.Tensor:
    return run(index, dtype, disk_gb=0)[0]


def cap_gb(index: str, pages_per_layer: float, *, workspace: bool) -> float:
    """A cap that leaves room for so many pages in each of the three layers."""
    token_bytes = 2 * 2 * 8 * 4  # K and V, two KV heads of 8 dims, fp32
    reserve = WORKSPACE if workspace else 0
    return (reserve + 3 * pages_per_layer * PAGE * token_bytes) / 1e9


@settings(max_examples=10, deadline=None, derandomize=True)
@given(
    index=st.sampled_from(["bounds", "oracle", "dense", "window"]),
    gpu_pages=st.none() | st.floats(9, 110),
    host_pages=st.floats(9, 130),
    codec=st.sampled_from(["zstd", "raw"]),
    dtype=st.sampled_from(["float32", "bfloat16"]),
)
def test_spilling_equals_not_spilling_bit_for_bit(
    index: str, gpu_pages: float | None, host_pages: float, codec: str, dtype: str
) -> None:
    caps: dict[str, Any] = {"host_gb": cap_gb(index, host_pages, workspace=gpu_pages is None), "codec": codec}
    if gpu_pages is not None:
        caps["gpu_gb"] = cap_gb(index, gpu_pages, workspace=True)
    found, _ = run(index, dtype, disk_gb=0.1, **caps)
    assert torch.equal(found, unspilled(index, dtype))


@pytest.mark.parametrize("index", ["leoam", "magicpig", "shadowkv", "spectral"])
@pytest.mark.parametrize("pages", [12, 60, 200])
def test_what_an_index_learns_does_not_depend_on_caps(index: str, pages: int) -> None:
    """Although caps cut the prompt into spans of other lengths: the first turn is one of them, or two."""
    caps = {"gpu_gb": cap_gb(index, pages, workspace=True), "host_gb": cap_gb(index, 30, workspace=False)}
    found, _ = run(index, disk_gb=0.1, **caps)
    assert torch.equal(found, unspilled(index))


def test_a_tight_split_reads_from_all_three_tiers() -> None:
    found, stats = run(
        "bounds", disk_gb=0.1, gpu_gb=cap_gb("bounds", 6, workspace=True), host_gb=cap_gb("bounds", 20, workspace=False)
    )
    assert torch.equal(found, unspilled("bounds"))
    assert all(stats["tiers"][tier]["page_reads"] > 0 for tier in ("gpu", "host", "disk"))
    assert all(stats["tiers"][tier]["pages"] > 0 for tier in ("gpu", "host", "disk"))


def test_sparse_reading_is_not_dense_reading() -> None:
    """The property above would hold for a model that ignores its cache; this one does not."""
    assert not torch.equal(unspilled("bounds"), unspilled("dense"))
    assert not torch.equal(unspilled("window"), unspilled("oracle"))
