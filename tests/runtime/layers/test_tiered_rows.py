"""A layer's rows read what its index chooses, wherever the pages lie, and stay for as long as they hold."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from attending import SCALE, attending
from compiled_rows import team
from compiled_steps import PAGE, PROMPT, decoded, opened, prompted
from kv_pages import SMALL, store_on, text
from tiny_models import VOCABULARY

from stratakv.kernels.compiled import record as r
from stratakv.kernels.decode_attention import decode_attention_reference
from stratakv.retrieval import IndexParams, make_index
from stratakv.runtime.layers.attend_rows import Attending
from stratakv.runtime.layers.page_reader import PageReader
from stratakv.runtime.layers.pages import LayerPages
from stratakv.runtime.layers.standing import NUM_ROWS
from stratakv.runtime.layers.tiered_rows import TieredRows
from stratakv.runtime.layers.workspace import Workspace

SIZE = SMALL.page_size
PAGES, TAIL, REPEATS = 40, 3, 3
TOKENS, BUDGET = PAGES * SIZE, 13 * SIZE
TEXT = text(SMALL, PAGES + 1)
KV = torch.randn(2, SMALL.num_heads, TOKENS + SIZE, SMALL.head_dim, generator=torch.Generator().manual_seed(0))


class Layer:
    """Pages of one layer with so many tokens, and the state of an index over them."""

    def __init__(self, index: str, sealed: int = TOKENS, tail: int = TAIL) -> None:
        self.store, self.index = store_on(None, SMALL, host=PAGES + 2), make_index(index, IndexParams(page_size=SIZE))
        self.pages = LayerPages(self.store, 0)
        count = sealed // SIZE
        self.pages.put(TEXT.chains[:count], TEXT.tokens[:count], KV[:, :, :sealed])
        for at in range(sealed, sealed + tail):
            self.pages.add(*KV[:, :, at])
        reader = PageReader(self.pages, Workspace(SMALL, 0, torch.device("cpu")), lambda pids: None)
        self.rows, self.state = TieredRows(self.pages, reader, self.index), self.index.build(KV[0, :, :sealed])
        q = torch.randn(SMALL.num_heads * REPEATS, SMALL.head_dim, generator=torch.Generator().manual_seed(1))
        self.at = attending(q, SMALL.num_heads, sealed + tail)

    def attend(self, budget: int) -> tuple[Any, int, int]:
        rows = np.zeros((NUM_ROWS, r.WIDTH), dtype=np.int64)
        choose = partial(self.index.select, self.state)
        return self.rows.attend(
            rows, self.at, self.state, budget, lambda some: team().run(some, 2),
            lambda q, budget: choose(q, self.pages.sealed, budget),
        )  # fmt: skip

    def seal(self) -> None:
        for at in range(self.pages.sealed + self.pages.tail_len, self.pages.sealed + SIZE):
            self.pages.add(*KV[:, :, at])
        self.pages.seal(TEXT.chains[-1], TEXT.tokens[-1])


@pytest.fixture
def layer(request: pytest.FixtureRequest) -> Iterator[Layer]:
    layer = Layer(getattr(request, "param", "bounds"))
    yield layer
    layer.store.close()


def standing(layer: Layer, budget: int = BUDGET, at: Attending | None = None, state: object = None) -> Any:
    return layer.rows.standing(at or layer.at, layer.state if state is None else state, budget)


# Reading


@pytest.mark.parametrize("index", ["bounds", "spectral", "oracle"])
@pytest.mark.parametrize("sealed", [0, BUDGET, TOKENS])
def test_attention_is_over_the_units_that_are_named_and_the_open_page(index: str, sealed: int) -> None:
    layer = Layer(index, sealed)
    ids, unit, parts = layer.attend(BUDGET)
    runs = [(KV[0, :, sealed : sealed + TAIL], KV[1, :, sealed : sealed + TAIL])]
    if sealed:
        where = (ids.unsqueeze(-1) * unit + torch.arange(unit)).flatten(1)[..., None].expand(-1, -1, SMALL.head_dim)
        runs.append((KV[0].gather(1, where), KV[1].gather(1, where)))
        assert ids.shape[1] * unit == BUDGET
    else:
        assert ids is None
    query = layer.at.q.view(SMALL.num_heads, REPEATS, SMALL.head_dim)
    for found, expected in zip(
        layer.at.merged(parts), decode_attention_reference(query, runs, scale=SCALE), strict=True
    ):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    layer.store.close()


@pytest.mark.parametrize(("index", "chosen", "every"), [("magicpig", False, False), ("oracle", False, True)])
def test_what_only_the_index_can_do_has_no_rows(index: str, *, chosen: bool, every: bool) -> None:
    """Attention that estimates, and a choice without scores; where all is read nothing is chosen."""
    layer = Layer(index)
    assert (standing(layer) is not None) == chosen
    assert (standing(layer, TOKENS) is not None) == every
    layer.store.close()


# What stays


def test_rows_stay_while_nothing_but_the_newest_token_is_new(layer: Layer) -> None:
    first = standing(layer)
    layer.pages.add(*KV[:, :, TOKENS + TAIL])
    again = standing(layer, BUDGET - 1)
    assert again is first
    assert (again.counts.units, again.most, again.is_chosen) == (BUDGET // SIZE - 1, BUDGET // SIZE, True)


def test_rows_are_made_anew_when_a_page_is_sealed_or_cut(layer: Layer) -> None:
    first = standing(layer)
    layer.seal()
    second = standing(layer)
    assert second is not first
    assert len(second.pids) == PAGES + 1
    layer.pages.cut(PAGES)
    assert standing(layer) is not second


def test_rows_are_made_anew_where_addresses_in_them_are_others(layer: Layer) -> None:
    first = standing(layer)
    other = replace(layer.at)
    assert (second := standing(layer, at=other)) is not first
    assert (third := standing(layer, at=other, state=layer.index.copy(layer.state))) is not second
    other.room.floats("scores", 10**5)
    assert standing(layer, at=other, state=layer.rows._made_of[1]) is not third


def test_rows_are_made_anew_when_all_is_read_or_more_than_there_is_room_for(layer: Layer) -> None:
    first = standing(layer)
    every = standing(layer, TOKENS)
    assert every is not first
    assert (every.is_chosen, every.counts.units, every.unit) == (False, PAGES, SIZE)
    few = standing(layer)
    more = standing(layer, BUDGET + SIZE)
    assert more is not few
    assert more.most == more.counts.units == BUDGET // SIZE + 1


@pytest.fixture
def _switched_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STRATAKV_COMPILED", "1")


@pytest.mark.usefixtures("_switched_on")
def test_what_is_not_in_memory_is_fetched_and_no_bit_differs(tiny_llama: Path, tmp_path: Path) -> None:
    found = []
    for settings in ({}, {"host_gb": 0.0006, "disk_gb": 0.1, "path": str(tmp_path / "kv")}, {"gpu_gb": 0.0009}):
        with opened(tiny_llama, **settings) as runtime:
            found.append(decoded(runtime.engine, [prompted(runtime.engine, 600)]))
            if "disk_gb" in settings:
                assert runtime.store.counters.disk_reads > 0
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


@pytest.mark.usefixtures("_switched_on")
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("index", ["bounds", "spectral"])
def test_rows_that_stay_are_those_that_would_be_made_anew(
    tiny_llama: Path, index: str, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A sequence's rows outlive a step; those of a fork of it are made anew. Both compute the same bits, whatever has
    happened before: tokens read, steps undone, pages given up, a batch in another order, room that had to grow."""
    rng = np.random.default_rng(seed)
    with opened(tiny_llama, index) as runtime:
        engine = runtime.engine
        sequences = [prompted(engine, 60 + 7 * seed), prompted(engine, PROMPT)]
        points = [sequence.snapshot() for sequence in sequences]
        for _ in range(25):
            chosen = [sequences[b] for b in rng.permutation(2)[: rng.integers(1, 3)]]
            some = int(rng.integers(2))
            match rng.integers(6):
                case 0:
                    tokens = rng.integers(3, VOCABULARY, rng.integers(1, 150)).astype(np.uint32)
                    engine.prefill(sequences[some], tokens)
                case 1:
                    engine.rollback(sequences[some], points[some])
                case 2:
                    points[some] = sequences[some].snapshot()
                case 3:
                    with monkeypatch.context() as patch:
                        patch.setattr(chosen[0].layers[1], "begin_step", lambda *_: 1 // 0)
                        with pytest.raises(ZeroDivisionError):
                            engine.decode(chosen, [5] * len(chosen))
            for token in rng.integers(3, VOCABULARY, rng.integers(1, 2 * PAGE)).tolist():
                anew = [engine.fork(sequence) for sequence in chosen]
                expected = engine.decode(anew, [token] * len(anew))
                assert torch.equal(engine.decode(chosen, [token] * len(chosen)), expected)
                for sequence in anew:
                    sequence.close()
