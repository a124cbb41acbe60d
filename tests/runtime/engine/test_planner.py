"""What the tiers hold is known before any work, and what they cannot hold is refused with the sum and a way out."""

from __future__ import annotations

import re
import resource
import sys
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import psutil
import pytest
import torch
from kv_pages import arena, disk_tier, text

from stratakv.runtime import DoesNotFitError, KVConfig
from stratakv.runtime.engine.held import Held
from stratakv.runtime.engine.planner import (
    GB,
    RECORD_OVERHEAD,
    Plan,
    available_memory,
    chunk_of,
    make_plan,
    plan_within,
)  # fmt: skip
from stratakv.runtime.layers.workspace import KEY_BLOCK, Workspace
from stratakv.storage import PageLayout, TieredStore

LAYOUT = PageLayout(num_heads=2, page_size=16, head_dim=64, dtype="float32")
"""1,024 bytes a token, 16 KiB a page."""
LAYERS, SPAN, CHUNK = 3, 512, 128
TOKEN = LAYERS * LAYOUT.token_bytes
WORKSPACE = Workspace.bytes_for(LAYOUT, SPAN)
PLAN = Plan(
    layout=LAYOUT,
    num_tiered=LAYERS,
    gpu_bytes=None,
    host_bytes=WORKSPACE + 1000 * TOKEN,
    disk_bytes=0,
    span_tokens=SPAN,
)
CPU = torch.device("cpu")


def planned(**caps: float) -> Plan:
    return make_plan(KVConfig(disk_gb=0, **caps), LAYOUT, LAYERS, CPU, CHUNK)


def test_the_compute_tier_has_room_for_pages_beside_its_workspace() -> None:
    assert PLAN.compute_pool_bytes == PLAN.host_pool_bytes == 1000 * TOKEN
    beside_gpu = replace(PLAN, gpu_bytes=WORKSPACE + 7, host_bytes=1000 * TOKEN)
    assert (beside_gpu.compute_pool_bytes, beside_gpu.host_pool_bytes) == (7, 1000 * TOKEN)


def test_the_last_tier_decides_how_many_tokens_are_kept() -> None:
    """One page of each layer is open, so that host memory alone keeps a page less than fits it."""
    assert PLAN.capacity_tokens() == PLAN.host_tokens() == 1000 - LAYOUT.page_size
    assert PLAN.host_tokens(num_taken=3 * LAYERS) == 1000 - 4 * LAYOUT.page_size
    assert PLAN.host_tokens(num_taken=1000) == 0
    with_disk = replace(PLAN, disk_bytes=5000 * TOKEN)
    assert with_disk.capacity_tokens() == int(5000 / 1.2)
    assert replace(with_disk, gpu_bytes=GB, host_bytes=GB).capacity_tokens() == int(5000 / 1.2)


@pytest.mark.parametrize("tokens", [1, 16, 999, 1000, 123_457])
def test_the_disk_that_so_many_tokens_need_keeps_them(tokens: int) -> None:
    assert tokens <= PLAN.disk_tokens(PLAN.disk_need(tokens)) <= tokens + 1


@pytest.mark.parametrize("codec", ["kivi", "rotatekv:bits=4", "int8"])
def test_coded_pages_need_what_they_take(tmp_path: Path, codec: str) -> None:
    """A disk tier takes as many pages of a codec as it is said to keep tokens, and more than it would keep raw."""
    cap = 4 << 20
    plan = make_plan(KVConfig(disk_gb=0, codec=codec, host_gb=0.1), LAYOUT, 1, CPU, CHUNK)
    count = plan.disk_tokens(cap) // LAYOUT.page_size
    assert count > 2 * (replace(plan, disk_share=RECORD_OVERHEAD).disk_tokens(cap) // LAYOUT.page_size)
    named, pages = text(LAYOUT, count), torch.randn(count, LAYOUT.page_bytes // 4).view(torch.uint8)
    disk = disk_tier(tmp_path / "s", cap_bytes=cap)
    store = TieredStore(LAYOUT, 1, host=arena("host", LAYOUT, count), disk=disk, codec=codec)
    store.put(0, named.chains, named.tokens, pages)
    store.flush()
    assert disk.num_pages == count
    store.close()
    with pytest.raises(DoesNotFitError, match=r"disk 0.00419 GB \(up to 0.\d+x the raw bytes\)"):
        replace(plan, disk_bytes=cap).check(plan.disk_tokens(cap) + 1, "the text")


def test_a_model_of_windows_alone_is_never_too_long() -> None:
    plan = replace(PLAN, num_tiered=0)
    assert plan.host_tokens() == plan.disk_tokens(1) == sys.maxsize
    plan.check(10**15, "a long text")


def test_as_many_tokens_as_are_kept_pass_and_one_more_is_refused() -> None:
    most = PLAN.host_tokens()
    PLAN.check(most, "the text")
    says = (
        f"the text does not fit: {most + 1} tokens x {TOKEN} bytes = 0.00303 GB, but there is host 0.00307 GB, enough "
        f"for {most} tokens; raise host_gb, or raise disk_gb"
    )
    with pytest.raises(DoesNotFitError, match=re.escape(says)):
        PLAN.check(most + 1, "the text")


def test_a_refusal_tells_how_much_of_the_disk_is_others() -> None:
    plan = replace(PLAN, disk_bytes=GB, store_bytes=3 * GB, disk_knob="free some room")
    says = r"there is disk 1 GB \(up to 1.2x the raw .*, 2 GB more in other folders\), enough for \d+ tokens; free some"
    with pytest.raises(DoesNotFitError, match=says):
        plan.check(plan.capacity_tokens() + 1, "the text")
    with pytest.raises(DoesNotFitError, match=r"there is disk 0\.5 GB "):
        plan.check(plan.capacity_tokens(), "the text", disk_bytes=GB // 2)


def test_a_larger_cap_makes_longer_spans_of_whole_chunks() -> None:
    least = Workspace.bytes_for(LAYOUT, CHUNK) + 4 * LAYERS * LAYOUT.page_bytes
    plans = [planned(host_gb=(least + more * LAYOUT.token_bytes) / GB) for more in (0, 500, 2000, 10**5, 10**6)]
    spans = [plan.span_tokens for plan in plans]
    assert spans[0] == CHUNK
    assert spans[-1] == spans[-2] == 4096
    assert all(span % CHUNK == 0 for span in spans)
    assert all(one < other for one, other in pairwise(spans[:4]))
    assert all(plan.compute_pool_bytes >= 4 * LAYERS * LAYOUT.page_bytes for plan in plans)


def test_a_compute_tier_without_room_to_work_in_is_refused() -> None:
    """One byte less than a workspace of one chunk and four pages in each layer."""
    least = Workspace.bytes_for(LAYOUT, CHUNK) + 4 * LAYERS * LAYOUT.page_bytes
    assert planned(host_gb=least / GB).span_tokens == CHUNK
    says = (
        r"host cap 0.00297 GB is too small: 0.00277 GB workspace \+ 4 pages x 3 layers x 16384 bytes = .* raise host_gb"
    )
    with pytest.raises(DoesNotFitError, match=says):
        planned(host_gb=(least - 1) / GB)
    with pytest.raises(DoesNotFitError, match=r"device cap 0.00297 GB is too small: .* raise gpu_gb"):
        planned(gpu_gb=(least - 1) / GB, host_gb=1)


def test_beside_a_device_host_memory_has_two_pages_of_each_layer() -> None:
    least = 2 * LAYERS * LAYOUT.page_bytes
    assert planned(gpu_gb=0.1, host_gb=least / GB).host_pool_bytes == least
    with pytest.raises(
        DoesNotFitError, match=r"host cap .* is too small: 2 pages x 3 layers x 16384 bytes = .*host_gb"
    ):
        planned(gpu_gb=0.1, host_gb=(least - 1) / GB)


def test_people_read_what_each_tier_holds() -> None:
    plan = replace(PLAN, gpu_bytes=WORKSPACE + 20 * TOKEN, host_bytes=GB, disk_bytes=2 * GB)
    workspace = f"{WORKSPACE / GB:.3g} GB workspace"
    assert plan.rows() == [
        ("gpu", f"{plan.gpu_bytes / GB:.3g} GB", f"20 + {workspace}"),
        ("host", "1 GB", str(GB // TOKEN)),
        ("disk", "2 GB", str(int(2 * GB / 1.2) // TOKEN)),
    ]
    assert [tier for tier, *_ in PLAN.rows()] == ["host", "disk"]


def test_what_a_sequence_holds_beside_pages_is_no_room_for_pages() -> None:
    held = Held(state_bytes=100, window_bytes=24)
    least = Workspace.bytes_for(LAYOUT, CHUNK) + 4 * LAYERS * LAYOUT.page_bytes + held.sequence_bytes

    def planned_with(**caps: float) -> Plan:
        return make_plan(KVConfig(disk_gb=0, **caps), LAYOUT, LAYERS, CPU, CHUNK, held)

    plan = planned_with(gpu_gb=least / GB, host_gb=1)
    assert plan.compute_pool_bytes == 4 * LAYERS * LAYOUT.page_bytes
    assert plan.host_pool_bytes == GB
    assert plan.rows()[0][2].endswith("GB workspace + 3.24e-07 GB 3 states and windows")
    with pytest.raises(
        DoesNotFitError, match=r"workspace \+ 3.24e-07 GB 3 states and windows \+ 4 pages .* raise host_gb"
    ):
        planned_with(host_gb=(least - 1) / GB)
    windows_alone = replace(plan, num_tiered=0)
    assert [tokens.split(" + ")[0] for _, _, tokens in windows_alone.rows()] == ["any number of"] * 3


def test_a_limit_of_the_process_bounds_the_default_of_the_host_tier(monkeypatch: pytest.MonkeyPatch) -> None:
    """As batch systems set one: what it leaves is all that there is."""
    in_use = psutil.Process().memory_info().vms
    monkeypatch.setattr(resource, "getrlimit", lambda _: (in_use + 10**6, resource.RLIM_INFINITY))
    assert available_memory() <= 2 * 10**6
    monkeypatch.setattr(resource, "getrlimit", lambda _: (in_use // 2, resource.RLIM_INFINITY))
    assert available_memory() == 0


def test_more_rows_of_latents_go_together() -> None:
    """Keys of heads are made from them once for all rows of a call."""
    assert chunk_of("cpu", LAYOUT) < chunk_of("cpu", replace(LAYOUT, value_dim=32)) == chunk_of("cuda", LAYOUT)


def test_a_device_has_buffers_for_the_past_where_they_leave_most_of_it_to_pages() -> None:
    """An eighth of what is left, at most 131,072 tokens and two blocks; fewer than two blocks are of no use."""
    block = KEY_BLOCK * LAYOUT.token_bytes
    found = {}
    for blocks in (4, 15, 17, 80, 10_000):
        cap = Workspace.bytes_for(LAYOUT, 4096) + 4 * LAYERS * LAYOUT.page_bytes + blocks * block
        plan = plan_within(cap, GB, LAYOUT, LAYERS, CHUNK)
        assert plan.workspace_bytes == Workspace.bytes_for(LAYOUT, plan.span_tokens, plan.num_past)
        assert plan.compute_pool_bytes + plan.reserved_bytes == cap
        found[blocks] = plan.num_past
    assert found == {4: 0, 15: 0, 17: 2, 80: 10, 10_000: 66}
    assert plan_within(None, GB, LAYOUT, LAYERS, CHUNK).num_past == 0
    assert plan_within(GB, GB, replace(LAYOUT, page_size=24), LAYERS, CHUNK).num_past == 0
