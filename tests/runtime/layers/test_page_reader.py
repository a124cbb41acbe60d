"""What a layer reads are the pages' bytes: by units of any size, from any tier, and after damage."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from kv_pages import SMALL, lose_pages
from layer_kv import KV, PAGES, SIZE, filled, no_damage, opened, reader_of, spilled, workspace_of
from torch import Tensor

from stratakv.runtime.layers.page_reader import PageReader
from stratakv.storage import CorruptPageError

TOKENS = PAGES * SIZE


def some_ids(count: int, unit: int) -> Tensor:
    """Other units for each head."""
    rng = np.random.default_rng(3)
    rows = [np.sort(rng.choice(TOKENS // unit, count, replace=False)) for _ in range(SMALL.num_heads)]
    return torch.from_numpy(np.stack(rows))


def expected(ids: Tensor, unit: int) -> Tensor:
    """`[2, G, n * unit, D]`."""
    tokens = (ids[..., None] * unit + torch.arange(unit)).flatten(1)
    return torch.stack([KV[:, head, own] for head, own in enumerate(tokens)], 1)


@pytest.mark.parametrize("unit", [1, 2, SIZE])
@pytest.mark.parametrize("gpu", [None, 8])
def test_each_head_gets_its_own_units(unit: int, gpu: int | None) -> None:
    ids = some_ids(9, unit)
    with opened(gpu=gpu) as store:
        reader = reader_of(filled(store, PAGES))
        for budget in (None, 9 * unit):
            reader.begin_step(budget)
            assert torch.equal(torch.stack(reader.keys_values(ids, unit)), expected(ids, unit))
            assert torch.equal(reader.values(ids, unit), expected(ids, unit)[1])
        reader.close()


def test_whole_pages_by_number_and_by_position() -> None:
    with opened() as store:
        reader = reader_of(filled(store, PAGES))
        found = torch.stack(reader.pages(np.array([7, 2])))
        assert torch.equal(found, torch.cat([KV[:, :, page * SIZE : (page + 1) * SIZE] for page in (7, 2)], 2))
        assert torch.equal(torch.stack(reader.block(2 * SIZE, 5 * SIZE)), KV[:, :, 2 * SIZE : 5 * SIZE])


def test_values_alone_move_no_key() -> None:
    with opened(gpu=2) as store:
        reader = reader_of(filled(store, PAGES))
        reader.begin_step(None)
        reader.values(some_ids(5, 1), 1)
        assert store.counters.host_to_gpu_bytes == 5 * SMALL.token_bytes // 2
        assert store.gpu is not None
        assert store.gpu.num_pages == 0


@pytest.mark.parametrize("is_mended", [True, False])
def test_damaged_pages_are_recovered_and_read_once_more(tmp_path: Path, is_mended: bool) -> None:
    with spilled(tmp_path / "s", 5) as pages:
        store, asked = pages.store, []
        lose_pages(store, [pages.pids[2]])

        def recover(pids: list[int]) -> None:
            asked.append(pids)
            if is_mended:
                page = KV[:, :, 2 * SIZE : 3 * SIZE].transpose(0, 1).contiguous()
                store.replace(pids[0], page.view(torch.uint8).flatten())

        reader = reader_of(pages, recover)
        if is_mended:
            assert torch.equal(torch.stack(reader.block(SIZE, 4 * SIZE)), KV[:, :, SIZE : 4 * SIZE])
        else:
            with pytest.raises(CorruptPageError):
                reader.block(SIZE, 4 * SIZE)
        assert asked == [[pages.pids[2]]]


def test_what_comes_ahead_comes_a_buffer_at_a_time() -> None:
    heads, units = np.repeat([0, 1], 7), np.tile(np.arange(3, 10), 2)
    with opened() as store:
        workspace = workspace_of()
        workspace.ahead = workspace.ahead[: 5 * 2 * 2 * SMALL.head_dim]  # five units of two tokens
        reader, found = PageReader(filled(store, PAGES), workspace, no_damage), []
        for some_heads, some, staged in reader.fetch_ahead(heads, units, 2):
            rows = staged.view(2, len(some), 2, SMALL.head_dim)
            found += [
                (head, unit, rows[:, at].clone()) for at, (head, unit) in enumerate(zip(some_heads, some, strict=True))
            ]
            assert len(some) <= 5
        assert [(head, unit) for head, unit, _ in found] == [*zip(heads, units, strict=True)]
        assert all(torch.equal(kv, KV[:, head, 2 * unit : 2 * unit + 2]) for head, unit, kv in found)
        assert store.counters.reads == 0


@pytest.mark.usefixtures("read_by_host")
def test_rows_are_kept_where_pages_do_not_fit_the_pool() -> None:
    """As many as two selections have, if there is room; a larger selection gets another cache."""
    with opened(gpu=8) as store:
        few, many = reader_of(filled(store, 7)), reader_of(filled(store, PAGES))
        ids = torch.arange(6).expand(SMALL.num_heads, -1)
        for reader in (few, many):
            reader.begin_step(6)
            reader.keys_values(ids, 1)
        assert few.row_caches() == []
        (cache,) = many.row_caches()
        assert (cache.unit, cache.sides, cache.num_entries) == (1, 2, 12)
        many.begin_step(14)
        many.keys_values(ids, 1)
        (larger,) = many.row_caches()
        assert larger.num_entries >= 14
        moved = store.counters.host_to_gpu_bytes
        many.begin_step(14)
        many.keys_values(ids, 1)
        assert store.counters.host_to_gpu_bytes == moved
        many.close()
        assert store._residency.reserved == {0: 0}


def test_a_selection_that_the_pool_cannot_hold_is_read_without_a_cache() -> None:
    ids = some_ids(40, 1)
    with opened(gpu=4) as store:
        reader = reader_of(filled(store, PAGES))
        reader.begin_step(40)
        assert torch.equal(torch.stack(reader.keys_values(ids, 1)), expected(ids, 1))
        assert reader.row_caches() == []
        assert store._residency.reserved == {0: 0}


@pytest.mark.usefixtures("read_by_host")
def test_rows_behind_a_cut_are_forgotten() -> None:
    ids = torch.tensor([[0, 5, 9]]).expand(SMALL.num_heads, -1)
    with opened(gpu=8) as store:
        reader = reader_of(filled(store, PAGES))
        reader.begin_step(3 * 2)
        reader.keys_values(ids, 2)
        reader.truncate(10)
        (cache,) = reader.row_caches()
        assert cache.lacking(ids.numpy())[1].tolist() == [5, 9] * SMALL.num_heads
        reader.close()
