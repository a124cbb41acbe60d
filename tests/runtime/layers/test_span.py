"""The rows of a span: attention over them is exact, and only whoever brought all of them in one turn has them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from closeness import assert_close
from kv_pages import store_on, text
from layer_kv import KV, QUERIES, SCALE, SIZE, attended, filled, no_damage, opened, reader_of, workspace_of
from torch import Tensor

from stratakv.runtime import ConversationError
from stratakv.runtime.layers import span as module
from stratakv.runtime.layers.page_reader import PageReader
from stratakv.runtime.layers.pages import LayerPages
from stratakv.runtime.layers.span import Span
from stratakv.runtime.layers.workspace import Workspace
from stratakv.storage import PageLayout

SEALED, TAIL = 3 * SIZE, 2
"""Tokens before a span."""


@pytest.fixture
def workspace() -> Workspace:
    return workspace_of(20)


@pytest.fixture
def pages() -> Iterator[LayerPages]:
    with opened() as store:
        pages = filled(store, SEALED // SIZE)
        pages.set_tail(KV[:, :, SEALED : SEALED + TAIL])
        yield pages
        pages.close()


@pytest.fixture
def span(pages: LayerPages, workspace: Workspace) -> Span:
    return Span(pages, reader_of(pages), workspace)


def bring(span: Span, first: int, count: int) -> None:
    """The next rows, counted from the last page's end."""
    start = SEALED + first
    span.rows(first, count)[:] = KV[:, :, start : start + count]


def attention(span: Span, first: int, count: int) -> Tensor:
    some = slice(SEALED + first, SEALED + first + count)
    return span.attend(QUERIES[:, some], *KV[:, :, some], some.start, SCALE)[0]


@pytest.mark.parametrize("block", [SIZE, 2 * SIZE, 2048])
def test_attention_is_exact_over_pages_the_tail_and_the_rows_before(
    span: Span, workspace: Workspace, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Blocks of keys lie in pages, in the span, and in both."""
    monkeypatch.setattr(module, "KEY_BLOCK", block)
    with workspace.turns.taken():
        span.begin()
        for first, count in ((TAIL, 7), (TAIL + 7, 5)):
            bring(span, first, count)
            start = SEALED + first
            assert_close("out", attention(span, first, count), attended(start, start + count))
        assert torch.equal(span.whole(TAIL + 12), KV[:, :, SEALED : SEALED + TAIL + 12])


def test_rows_come_in_order_and_none_is_left_out(span: Span, workspace: Workspace) -> None:
    with workspace.turns.taken():
        span.begin()
        for first in (0, TAIL - 1, TAIL + 1):
            with pytest.raises(ConversationError, match="another call came between"):
                span.rows(first, 3)
        bring(span, TAIL, 2)
        with pytest.raises(ConversationError, match="nothing of it is kept"):
            span.whole(TAIL + 3)


def test_a_span_is_its_turns(span: Span, workspace: Workspace) -> None:
    with workspace.turns.taken():
        span.begin()
        bring(span, TAIL, 4)
    with pytest.raises(ConversationError, match="the workspace is used out of turn"):
        span.rows(TAIL + 4, 1)
    with workspace.turns.taken():
        for asked in (lambda: span.rows(TAIL + 4, 1), lambda: span.whole(TAIL + 4)):
            with pytest.raises(ConversationError, match="another call came between"):
                asked()
        span.begin()
        bring(span, TAIL, 1)
        assert torch.equal(span.whole(TAIL + 1), KV[:, :, SEALED : SEALED + TAIL + 1])


@pytest.mark.parametrize("count", [1, 2, 3, 4, 9, 30])
def test_partial_results_are_merged_before_there_are_many(count: int) -> None:
    """Three at a time, and three of those again: what is held grows as the number of levels."""
    generator = torch.Generator().manual_seed(count)
    parts, few, all_of_them = [], module._Parts(3), module._Parts(None)
    for _ in range(count):
        part = torch.randn(2, 5, 8, generator=generator), torch.randn(2, 5, generator=generator)
        parts.append(part)
        few.add(*part)
        all_of_them.add(*part)
        assert sum(len(level) for level in few._levels) <= 2 * len(few._levels)
    out, lse = few.merged()
    expected = module._merged(parts)
    assert all(torch.equal(*both) for both in zip(all_of_them.merged(), expected, strict=True))
    assert_close("out", out, expected[0].double())
    assert_close("lse", lse, expected[1].double())


@pytest.mark.parametrize(("size", "count"), [(24, 260), (3000, 3)])
def test_pages_need_not_divide_a_block_of_keys(size: int, count: int) -> None:
    """Some blocks then have a page more than others; of pages longer than a block some have none."""
    layout, sealed = PageLayout(num_heads=1, page_size=size, head_dim=8, dtype="float32"), size * count
    named, kv = text(layout, count), torch.randn(2, 1, sealed + 5, 8, generator=torch.Generator().manual_seed(0))
    store = store_on(None, layout, host=count)
    pages, workspace = LayerPages(store, 0), Workspace(layout, 8, torch.device("cpu"))
    pages.put(named.chains, named.tokens, kv[:, :, :sealed])
    span, q = Span(pages, PageReader(pages, workspace, no_damage), workspace), torch.randn(2, 5, 8)
    with workspace.turns.taken():
        span.begin()
        span.rows(0, 5)[:] = kv[:, :, sealed:]
        out, _ = span.attend(q, *kv[:, :, sealed:], sealed, SCALE)
    scores = q.double() @ kv[0].double().transpose(1, 2) * SCALE
    later = torch.arange(sealed + 5) > torch.arange(sealed, sealed + 5)[:, None]
    assert_close("out", out, scores.masked_fill(later, -torch.inf).softmax(-1) @ kv[1].double())
    pages.close()
    store.close()
