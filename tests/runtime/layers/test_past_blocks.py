"""Blocks of a past come in order, each asked for before the one in front of it is read, and land where nobody reads."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from device_engines import Tiers, config, device_engine, two_layers
from kv_pages import SMALL, disk_tier, lose_pages
from late_lanes import LateLane, OrderedLane
from layer_kv import KV, PAGES, QUERIES, SCALE, SIZE, TEXT, filled, no_damage, opened
from tiny_models import VOCABULARY
from torch import Tensor

from stratakv.runtime.engine.engine import Engine
from stratakv.runtime.layers import span as span_module
from stratakv.runtime.layers.page_reader import PageReader
from stratakv.runtime.layers.pages import LayerPages
from stratakv.runtime.layers.past_blocks import ROTATING, PastBlocks
from stratakv.runtime.layers.span import Span
from stratakv.runtime.layers.workspace import Workspace
from stratakv.runtime.process.turns import Turns
from stratakv.storage import TieredStore
from stratakv.storage.transfer.lane import Lane

CPU = torch.device("cpu")
BLOCK = 4
"""Pages of a block: of `PAGES` there are six."""
PAGE_BYTES = KV.permute(2, 1, 0, 3).reshape(PAGES, SIZE, 2, 2, 8).permute(0, 2, 3, 1, 4).reshape(PAGES, -1)
"""The pages as they lie, `[PAGES, G * S * L * D]`."""


def past_blocks(count: int, lane: Lane | None = None) -> PastBlocks:
    past = PastBlocks(SMALL, BLOCK * SIZE, count, CPU, Turns("a test"))
    past.buffers.fill_(torch.nan)
    past.lane = lane or past.lane
    return past


def blocks_of(pages: LayerPages) -> list[np.ndarray]:
    return [pages.pids[at : at + BLOCK] for at in range(0, len(pages.pids), BLOCK)]


def read(past: PastBlocks, pages: LayerPages) -> Tensor:
    with past._turns.taken():
        return torch.cat(list(past.read(pages.store, blocks_of(pages), Tensor.clone, no_damage)))


@pytest.fixture(params=["host", "some in the pool", "all in the pool", "disk"])
def pages(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[LayerPages]:
    """All that there are, of a sequence for which no tier but the last has room."""
    on_disk, roomy = request.param == "disk", request.param == "all in the pool"
    with opened(
        disk_tier(tmp_path) if on_disk else None, host=10 if on_disk else PAGES, gpu=30 if roomy else 7
    ) as store:
        pages = filled(store, PAGES)
        if request.param != "host":
            PageReader(pages, Workspace(SMALL, 0, CPU), no_damage).pages(np.arange(PAGES if roomy else 7))
        yield pages
        pages.close()


@pytest.mark.parametrize("lane", [Lane, LateLane])
@pytest.mark.parametrize("count", [2, 3, 8])
def test_every_block_is_what_the_pages_are_wherever_they_lie(pages: LayerPages, count: int, lane: type[Lane]) -> None:
    """However late the copies are done: an eviction from host memory waits for them."""
    past = past_blocks(count, lane())
    for _ in range(2):
        assert torch.equal(read(past, pages), PAGE_BYTES)
    pages.store.check_integrity()


def watched(past: PastBlocks, store: TieredStore, log: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    send = store.sending.send

    def noted(pids: np.ndarray, out: Tensor, lane: Lane) -> None:
        log.append(f"sent {pids[0] // BLOCK}")
        send(pids, out, lane)

    monkeypatch.setattr(store.sending, "send", noted)


def test_a_block_is_asked_for_before_the_one_in_front_of_it_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """And lands where nothing is read any more."""
    lane, log = OrderedLane(), list[str]()
    with opened(gpu=1) as store:
        pages, past = filled(store, PAGES), past_blocks(ROTATING, lane)
        watched(past, store, log, monkeypatch)

        def unpack(block: Tensor) -> None:
            lane.reading(block)
            log.append("unpacked")

        with past._turns.taken():
            for _ in range(2):
                for number, _ in enumerate(past.read(store, blocks_of(pages), unpack, no_damage)):
                    log.append(f"attended {number}")
        pages.close()
    one = ["sent 0"]
    for number in range(6):
        one += [f"sent {number + 1}"] * (number < 5) + ["unpacked", f"attended {number}"]
    assert log == one + one
    assert lane.copies == 12, "pages that lie side by side come in one copy"


def test_a_past_crosses_once_for_each_chunk_and_what_has_a_buffer_once_for_all() -> None:
    """But for the one page that the pool has room for. A turn later nothing of it is trusted."""
    for count, again in ((2, PAGES - 1), (4, PAGES - 2 * BLOCK), (8, 0)):
        with opened(gpu=1) as store:
            pages, past = filled(store, PAGES), past_blocks(count)
            moved = []
            with past._turns.taken():
                for _ in range(2):
                    before = store.counters.host_to_gpu_bytes
                    list(past.read(store, blocks_of(pages), Tensor.clone, no_damage))
                    moved.append((store.counters.host_to_gpu_bytes - before) // SMALL.page_bytes)
            assert moved == [PAGES, again]
            before = store.counters.host_to_gpu_bytes
            read(past, pages)
            assert store.counters.host_to_gpu_bytes - before == (PAGES - 1) * SMALL.page_bytes
            pages.close()


def test_what_has_arrived_is_kept_in_the_pools_empty_slots_and_nothing_makes_way() -> None:
    with opened(gpu=7) as store:
        assert store.gpu is not None
        pages, past = filled(store, PAGES), past_blocks(2)
        for _ in range(2):
            assert torch.equal(read(past, pages), PAGE_BYTES)
            assert sorted(store.gpu.page.tolist()) == pages.pids[:7].tolist()
        assert (store.counters.gpu_reads, store.gpu.departures) == (7, 0)
        pages.close()


@pytest.mark.parametrize("lost", [0, 5, 9, 23])
def test_a_damaged_page_is_recomputed_in_its_turn_whoever_reads_meanwhile(tmp_path: Path, lost: int) -> None:
    """Recomputing reads other pages through the same buffers."""
    with opened(disk_tier(tmp_path)) as store:
        filled(store, PAGES)
    with opened(disk_tier(tmp_path), host=8, gpu=1) as store:
        pages, past, asked = LayerPages(store, 0), past_blocks(3, LateLane()), list[int]()
        pages.adopt(TEXT.chains, TEXT.tokens)
        lose_pages(store, pages.pids[[lost]])

        def recover(pids: list[int]) -> None:
            asked.extend(pids)
            others = [pages.pids[[at]] for at in range(lost)]
            assert torch.equal(
                torch.cat([*past.read(store, others, Tensor.clone, no_damage), PAGE_BYTES[:0]]), PAGE_BYTES[:lost]
            )
            store.replace(pids[0], PAGE_BYTES[lost].view(torch.uint8))

        with past._turns.taken():
            found = torch.cat(list(past.read(store, blocks_of(pages), Tensor.clone, recover)))
        assert torch.equal(found, PAGE_BYTES)
        assert asked == [pages.pids[lost]]
        pages.close()


@pytest.mark.parametrize("num_past", [2, 8])
def test_attention_has_the_same_bits_as_without(num_past: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(span_module, "KEY_BLOCK", 3 * SIZE)
    found = []
    with opened(gpu=5) as store:
        pages = filled(store, 11)
        for count in (0, num_past):
            workspace = Workspace(SMALL, 20, CPU, num_past=count)
            if workspace.past is not None:
                workspace.past.lane = LateLane()
            span = Span(pages, PageReader(pages, workspace, no_damage), workspace)
            with workspace.turns.taken():
                span.begin()
                for first in (44, 51):
                    some = slice(first, first + 7)
                    span.rows(first - 44, 7)[:] = KV[:, :, some]
                    found.append(span.attend(QUERIES[:, some], *KV[:, :, some], first, SCALE))
        pages.close()
    for without, among in zip(found[:2], found[2:], strict=True):
        assert all(torch.equal(*both) for both in zip(without, among, strict=True))


def second_turn(engine: Engine) -> Tensor:
    """The logits of three turns."""
    sequence, found = engine.new_sequence(), []
    for seed, count in enumerate((300, 90, 20)):
        tokens = np.random.default_rng(seed).integers(3, VOCABULARY, count).astype(np.uint32)
        logits = engine.prefill(sequence, tokens, reuse=False).logits
        assert logits is not None
        found.append(logits)
    sequence.close()
    return torch.stack(found)


def test_a_second_turn_has_the_same_bits_and_a_failure_in_its_midst_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(span_module, "KEY_BLOCK", 64)
    model, answers = two_layers(tmp_path / "model"), []
    for tiers in (Tiers(), Tiers(gpu=24, past=4), Tiers(gpu=24, host=40, disk=True, past=2)):
        with device_engine(model, config("bounds"), tiers, tmp_path / f"{tiers.gpu}-{tiers.host}") as engine:
            answers.append(second_turn(engine))
            if engine.workspace.past is None:
                continue
            sequence, copies = engine.new_sequence(), 0
            engine.prefill(sequence, np.arange(3, 203, dtype=np.uint32), reuse=False)
            held, copy = (sequence.num_tokens, list(sequence.chains)), Lane.copy

            def breaks(self: Lane, out: Tensor, source: Tensor, copy: object = copy) -> None:
                nonlocal copies
                copies += 1
                if copies == 5:
                    raise RuntimeError("the device is gone")
                out.copy_(source)

            with monkeypatch.context() as patch:
                patch.setattr(Lane, "copy", breaks)
                with pytest.raises(RuntimeError, match="the device is gone"):
                    engine.prefill(sequence, np.arange(3, 53, dtype=np.uint32), reuse=False)
            assert (sequence.num_tokens, list(sequence.chains)) == held
            sequence.close()
            assert torch.equal(second_turn(engine), answers[0])
    assert torch.equal(answers[1], answers[0])
    assert torch.equal(answers[2], answers[0])
