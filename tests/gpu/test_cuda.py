"""The same code path with GPU, pinned host memory and disk as the three tiers.

Runs where CUDA is (`make gpu`), with a random model: nothing is downloaded.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from kv_pages import text
from tiny_models import VOCABULARY, reference_model

from stratakv.kernels.prefill_attention import prefill_attention, prefill_attention_reference
from stratakv.runtime import KVConfig, Runtime
from stratakv.runtime.engine.device_form import DeviceForm
from stratakv.runtime.engine.device_sampling import DeviceSampler
from stratakv.runtime.layers.page_reader import PageReader
from stratakv.runtime.layers.pages import LayerPages
from stratakv.runtime.layers.span import Span
from stratakv.runtime.layers.step_pages import EntryPages
from stratakv.runtime.layers.workspace import KEY_BLOCK, Workspace
from stratakv.storage import Arena, PageLayout, TieredStore

pytestmark = pytest.mark.gpu

KV: dict[str, Any] = {"index": "bounds", "budget": 112, "local": 32}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize(("heads", "groups", "dim"), [(9, 3, 64), (32, 8, 128), (4, 1, 256)])
@pytest.mark.parametrize("causal", [True, False])
def test_prefill_attention(dtype: torch.dtype, heads: int, groups: int, dim: int, causal: bool) -> None:
    torch.manual_seed(0)
    rows, keys = 129, 129 if causal else 517
    q = torch.randn(heads, rows, dim, device="cuda", dtype=dtype)
    k, v = torch.randn(2, groups, keys, dim, device="cuda", dtype=dtype)
    out, lse = prefill_attention(q, k, v, scale=dim**-0.5, causal=causal)
    expected, expected_lse = prefill_attention_reference(
        q.float(), k.float(), v.float(), scale=dim**-0.5, causal=causal
    )
    limit = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 2e-2}[dtype]
    assert (out.float() - expected).abs().max() <= limit * expected.abs().max()
    assert (lse - expected_lse).abs().max() <= 1e-2


def converse(model: Path, store: Path, **caps: Any) -> tuple[torch.Tensor, dict[str, Any]]:
    rng = np.random.default_rng(5)
    found = []
    with Runtime.load(model, device="cuda", dtype="float32", kv=KVConfig(path=store, **KV | caps)) as runtime:
        if runtime.store.host.pinner is not None:
            runtime.store.host.pinner.wait()
        sequence = runtime.engine.new_sequence()
        for turn in (700, 90):
            logits = runtime.engine.prefill(sequence, rng.integers(3, VOCABULARY, turn).astype(np.uint32)).logits
            assert logits is not None
            for _ in range(24):
                found.append(logits)
                logits = runtime.engine.decode([sequence], [int(logits.argmax())])[0]
        runtime.store.check_integrity()
        return torch.stack(found).cpu(), runtime.stats()


def test_dense_equals_transformers(tiny_llama: Path, tmp_path: Path) -> None:
    reference = reference_model(tiny_llama).cuda()
    ids = np.random.default_rng(1).integers(3, VOCABULARY, 300)
    with Runtime.load(
        tiny_llama, device="cuda", dtype="float32", kv=KVConfig(path=tmp_path, gpu_gb=0.1, host_gb=0.1)
    ) as runtime:
        logits = runtime.engine.prefill(runtime.engine.new_sequence(), ids.astype(np.uint32)).logits
    with torch.inference_mode():
        expected = reference(torch.from_numpy(ids)[None].cuda()).logits[0, -1]
    assert logits is not None
    assert (logits - expected).abs().max() <= 1e-3 * expected.abs().max()


def test_spilling_changes_no_bit(tiny_llama: Path, tmp_path: Path) -> None:
    roomy, _ = converse(tiny_llama, tmp_path / "roomy", gpu_gb=0.1, host_gb=0.1, disk_gb=0)
    tight, stats = converse(tiny_llama, tmp_path / "tight", gpu_gb=0.0007, host_gb=0.0003, disk_gb=0.1)
    assert torch.equal(roomy, tight)
    assert all(stats["tiers"][tier]["page_reads"] > 0 for tier in ("gpu", "host", "disk"))


def watched(work: Callable[..., Any], calls: list[str]) -> Callable[..., Any]:
    """The same work, which may not make the host wait for the device."""

    def call(*given: Any) -> Any:
        torch.cuda.set_sync_debug_mode("error")
        try:
            return work(*given)
        finally:
            torch.cuda.set_sync_debug_mode("default")
            calls.append(work.__name__)

    return call


@pytest.mark.parametrize("index", ["bounds", "shadowkv", "shadowkv:refine=2"])
def test_a_whole_step_makes_nobody_wait_wherever_pages_lie(
    tiny_llama: Path, tmp_path: Path, index: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the numbers that are pushed to the logits, called, while it is recorded, and replayed."""
    calls: list[str] = []
    for name in ("push", "compute"):
        monkeypatch.setattr(DeviceForm, name, watched(getattr(DeviceForm, name), calls))
    monkeypatch.setattr(torch.cuda.CUDAGraph, "replay", watched(torch.cuda.CUDAGraph.replay, calls))
    roomy, _ = converse(tiny_llama, tmp_path / "roomy", index=index, gpu_gb=0.1, host_gb=0.1, disk_gb=0)
    found, find = [], EntryPages.find
    monkeypatch.setattr(EntryPages, "find", lambda *given: found.append(given) or find(*given))
    pinned, _ = converse(tiny_llama, tmp_path / "pinned", index=index, gpu_gb=0.0007, host_gb=0.1, disk_gb=0)
    assert torch.equal(roomy, pinned)
    assert found, "nothing was found in pinned memory"
    assert calls.count("replay") > calls.count("compute")


def test_the_host_is_one_step_behind_and_nobody_waits(
    tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Replies are those of taking turns. What the device chooses is chosen without a wait."""
    for name in ("choose", "draw"):
        monkeypatch.setattr(DeviceSampler, name, watched(getattr(DeviceSampler, name), []))
    kv = KVConfig(path=tmp_path, gpu_gb=0.1, host_gb=0.1, disk_gb=0, **KV)
    prompts = ["The letter lies under the lamp. " * count for count in (20, 30, 9)]
    settings: list[dict[str, Any]] = [
        {},
        {"do_sample": True, "seed": 3},
        {"do_sample": True, "repetition_penalty": 1.2},
    ]
    with Runtime.load(tiny_llama, device="cuda", dtype="float32", kv=kv) as runtime:
        assert runtime.engine.is_ahead
        for some in settings:
            found = []
            for is_ahead in (False, True):
                runtime.engine.is_ahead = is_ahead
                replies = runtime.generate(prompts, max_new_tokens=40, **{"seed": 0, **some})
                found.append([(reply.tokens, reply.text, reply.finish_reason) for reply in replies])
            assert found[0] == found[1]


def test_a_past_comes_on_a_stream_of_its_own_and_nobody_waits() -> None:
    """Five blocks through two buffers and one that stays, twice, while the device works on what it has."""
    layout, device = PageLayout(num_heads=8, page_size=16, head_dim=128, dtype="bfloat16"), torch.device("cuda")
    count, tokens = 4 * KEY_BLOCK // 16 + 5, 4 * KEY_BLOCK + 80
    named = text(layout, count)
    host = Arena("host", count * layout.page_bytes, layout.page_bytes, torch.device("cpu"), pin=True)
    gpu = Arena("gpu", 9 * layout.page_bytes, layout.page_bytes, device)
    store = TieredStore(layout, 1, host=host, gpu=gpu)
    assert host.pinner is not None
    host.pinner.wait()
    kv = torch.randn(2, 8, tokens + 64, 128, generator=torch.Generator().manual_seed(0)).bfloat16()
    pages, rows = LayerPages(store, 0), kv[:, :, tokens:].to(device)
    pages.put(named.chains, named.tokens, kv[:, :, :tokens])
    q, found = torch.randn(32, 64, 128, device=device, dtype=torch.bfloat16), []
    for num_past in (0, 3):
        workspace = Workspace(layout, 64, device, num_past=num_past)
        span = Span(pages, PageReader(pages, workspace, lambda pids: None), workspace)
        with workspace.turns.taken():
            span.begin()
            span.rows(0, 64)[:] = rows
            found.append(span.attend(q, rows[0], rows[1], tokens, 0.1))
            found.append(span.attend(q, rows[0], rows[1], tokens, 0.1))
            if not num_past:
                continue
            torch.cuda.set_sync_debug_mode("error")
            try:
                blocks = []
                for keys, values in span.blocks(tokens):
                    blocks.append(torch.stack([keys, values]))
                    torch.randn(2048, 2048, device=device) @ blocks[-1][0, 0].float().new_ones(2048, 2048)
            finally:
                torch.cuda.set_sync_debug_mode("default")
            assert torch.equal(torch.cat(blocks, 2).cpu(), kv[:, :, :tokens])
    for out, lse in found[1:]:
        assert torch.equal(out, found[0][0])
        assert torch.equal(lse, found[0][1])
    store.check_integrity()
    pages.close()
    store.close()


def test_a_session_resumes(tiny_llama: Path, tmp_path: Path) -> None:
    kv = KVConfig(path=tmp_path, gpu_gb=0.1, host_gb=0.1, **KV)
    with Runtime.load(tiny_llama, device="cuda", dtype="float32", kv=kv) as runtime:
        chat = runtime.chat()
        chat.read_text("The letter lies under the lamp. " * 20)
        chat.save("lamp")
        tokens = chat.send("Where?", max_new_tokens=32, ignore_eos=True).tokens
    with Runtime.load(tiny_llama, device="cuda", dtype="float32", kv=kv) as runtime:
        chat = runtime.chat(session="lamp")
        assert chat.restored == chat.num_tokens
        assert chat.send("Where?", max_new_tokens=32, ignore_eos=True).tokens == tokens
