"""A layer that shares attends as its source does with the same queries, and holds nothing itself."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from closeness import assert_close
from kv_pages import SMALL
from layer_kv import KV, QUERIES, REPEATS, SCALE, SIZE, TEXT, attended, no_damage, opened, workspace_of
from torch import Tensor

from stratakv.retrieval.params import IndexParams
from stratakv.retrieval.registry import make_index
from stratakv.runtime.layers.base import LayerKV
from stratakv.runtime.layers.paged import paged_layers
from stratakv.runtime.layers.sharing import sharing
from stratakv.runtime.layers.sliding import SlidingLayer
from stratakv.runtime.layers.step import Step
from stratakv.runtime.layers.tiered import TieredLayer
from stratakv.storage import TieredStore

WINDOW, TOKENS = 6, 41
NONE = torch.empty(0, 1, SMALL.head_dim)
"""k and v of one token."""


def tiered(store: TieredStore, budget: int) -> TieredLayer:
    index = make_index("bounds", IndexParams(page_size=SIZE, sink=4, local=4))
    return TieredLayer(0, store, index, workspace_of(TOKENS), lambda _: budget, no_damage, repeats=REPEATS)


def sliding(store: TieredStore, budget: int) -> SlidingLayer:
    return window()


def window() -> SlidingLayer:
    return SlidingLayer(0, WINDOW, SMALL, torch.float32, torch.device("cpu"))


def last(layer: LayerKV, end: int) -> Tensor:
    """What the last token of a prompt makes of it, exactly."""
    return layer.extend(QUERIES[:, end - 1 : end], NONE, NONE, end - 1, SCALE)


@pytest.mark.parametrize("end", [1, SIZE, 3 * SIZE, 3 * SIZE + 1, TOKENS])
def test_the_last_row_of_a_prompt_is_exact(end: int) -> None:
    with opened() as store:
        source = tiered(store, 8)
        with source.workspace.turns.taken():
            source.begin()
            source.extend(QUERIES[:, :end], *KV[:, :, :end], 0, SCALE)
            source.finish(TEXT.chains[: end // SIZE], TEXT.tokens[: end // SIZE], end)
            assert_close("out", last(sharing(3, source, no_damage), end), attended(end - 1, end))
        source.close()


@pytest.mark.parametrize("make", [tiered, sliding])
@pytest.mark.parametrize("budget", [16, 1000])
def test_a_step_reads_what_the_source_would_read(make: Callable[[TieredStore, int], LayerKV], budget: int) -> None:
    with opened() as store:
        source = make(store, budget)
        layer = sharing(3, source, no_damage)
        turns = source.workspace.turns if isinstance(source, TieredLayer) else workspace_of().turns
        with turns.taken():
            for at in range(TOKENS):
                out = source.step(QUERIES[:, at], *KV[:, :, at], SCALE)
                assert torch.equal(layer.step(QUERIES[:, at], NONE[:, 0], NONE[:, 0], SCALE), out)
                other = layer.step(QUERIES[:, at - 1], NONE[:, 0], NONE[:, 0], SCALE)
                assert torch.equal(other, out) == (at == 0), "one token is all there is, whatever the query"
                if (at + 1) % SIZE == 0:
                    source.seal(TEXT.chains[at // SIZE], TEXT.tokens[at // SIZE])
                    layer.seal(TEXT.chains[at // SIZE], TEXT.tokens[at // SIZE])
            point, own = source.snapshot(), layer.snapshot()
            told = source.step(QUERIES[:, 3], *KV[:, :, 3], SCALE)
            source.rollback(point)
            layer.rollback(own)
            source.step(QUERIES[:, 5], *KV[:, :, 3], SCALE)
            assert torch.equal(layer.step(QUERIES[:, 3], NONE[:, 0], NONE[:, 0], SCALE), told)
        assert (layer.export(), layer.leave(0, 1000), layer.check_exported("a", {}, 9)) == ({}, {}, set())
        layer.close()
        source.close()


def test_a_window_reaches_back_a_page_at_most() -> None:
    source = window()
    source.extend(QUERIES[:, :TOKENS], *KV[:, :, :TOKENS], 0, SCALE)
    layer, rows = sharing(3, source, no_damage), slice(TOKENS - SIZE, TOKENS)
    found = layer.extend(QUERIES[:, rows], NONE, NONE, rows.start, SCALE)
    assert_close("out", last(layer, TOKENS), found[:, -1:])
    for start, end in ((TOKENS - SIZE - 1, TOKENS), (TOKENS - 3, TOKENS - 1)):
        with pytest.raises(AssertionError, match=r"their windows begin before|not the last rows"):
            layer.extend(QUERIES[:, start:end], NONE, NONE, start, SCALE)


def test_who_watches_is_told_of_shared_pages_too() -> None:
    with opened() as store:
        source, seen = tiered(store, 16), []
        layers: list[LayerKV] = [source, sharing(3, source, no_damage)]

        def watch(layer: object, step: Step) -> None:
            seen.append(layer)

        with source.workspace.turns.taken():
            for each in paged_layers(layers):
                each.watch = watch
            source.step(QUERIES[:, 0], *KV[:, :, 0], SCALE)
            layers[1].step(QUERIES[:, 0], NONE[:, 0], NONE[:, 0], SCALE)
        assert seen == layers
        source.close()
