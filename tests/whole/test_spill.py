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
from tiny_models import VOCABULARY, moved, reference_model, save_tiny_model, tolerance

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
def model(family: str = "llama") -> Path:
    folder = Path(tempfile.mkdtemp(prefix="stratakv-test-"))
    return moved(save_tiny_model(folder, family, max_position_embeddings=2048), 0.3)


def prompts(turns: tuple[int, ...]) -> list[np.ndarray]:
    rng = np.random.default_rng(7)
    return [rng.integers(3, VOCABULARY, turn).astype(np.uint32) for turn in turns]


def run(
    index: str, dtype: str = "float32", family: str = "llama", turns: tuple[int, ...] = TURNS, **caps: Any
) -> tuple[torch.Tensor, dict[str, Any]]:
    """Logits `[turns * (1 + steps), vocabulary]` of a fixed conversation, and the store's figures."""
    found = []
    kv = {"index": index, "budget": 96, "sink": 8, "local": 16, "page_size": PAGE}
    with (
        tempfile.TemporaryDirectory() as folder,
        Runtime.load(model(family), dtype=dtype, kv=KVConfig(path=folder, **kv, **caps)) as runtime,
    ):
        sequence = runtime.engine.new_sequence()
        for prompt in prompts(turns):
            logits = runtime.engine.prefill(sequence, prompt).logits
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


# Hybrids

HYBRIDS = {"qwen3_5_text": (820_000, 2048), "gemma4_text-shared": (1_640_000, 2 * 4096)}
"""Recurrent layers and a full one; sliding and full ones, of which the last have no keys of their own. Bytes that a
device tier takes beside pages, at the least, and bytes of a page in all layers that have pages."""


def dense_logits(family: str, turns: tuple[int, ...], found: torch.Tensor) -> torch.Tensor:
    """transformers' own where `found` is from, after the tokens that were chosen from that."""
    said: list[int] = []
    places: list[int] = []
    for prompt, logits in zip(prompts(turns), found.split(1 + STEPS), strict=True):
        said += [*prompt.tolist(), *logits[:STEPS].argmax(-1).tolist()]
        places += range(len(said) - STEPS - 1, len(said))
    with torch.inference_mode():
        logits: torch.Tensor = reference_model(model(family))(torch.tensor([said])).logits[0, places]
    return logits


@pytest.mark.parametrize("family", HYBRIDS)
def test_two_turns_of_a_hybrid_are_dense_at_every_split(family: str) -> None:
    """In memory alone, on the device, on disk, and in all three: no bit differs, and it is what transformers computes
    with everything in one place. What an offloaded cache gets wrong first is the second turn."""
    turns, (fixed, page) = (300, 60), HYBRIDS[family]
    found, stats = run("dense", family=family, turns=turns, host_gb=0.05, disk_gb=0)
    assert set(stats["tiers"]) == {"host"}
    theirs = dense_logits(family, turns, found)
    assert (found - theirs).abs().max() <= tolerance(family) * theirs.abs().max()
    most_read = {}
    for split, (gpu_pages, host_pages) in {"gpu": (500, 60), "disk": (5, 9), "mixed": (12, 24)}.items():
        caps = {"gpu_gb": (fixed + gpu_pages * page) / 1e9, "host_gb": host_pages * page / 1e9}
        other, stats = run("dense", family=family, turns=turns, disk_gb=0.1, **caps)
        assert torch.equal(other, found), split
        reads = {tier: of["page_reads"] for tier, of in stats["tiers"].items()}
        most_read[split] = max(reads, key=reads.__getitem__)
        assert (reads["disk"] == 0) == (split == "gpu"), "everything is near"
        assert min(reads.values()) > 0 or split == "gpu", "pages are read from every tier"
    assert most_read["gpu"] == "gpu"
