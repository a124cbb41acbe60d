"""The contract of rankings, for every index that has one: what they choose is what `select` chooses, whatever the room,
and nothing waits for the device."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from typing import Any

import pytest
import torch
from chosen_units import chosen_units, rebuilt_units
from hypothesis import given, settings
from hypothesis import strategies as st
from indexes import INDEX_CASES, PARAMS, IndexCase, draw, forced_pages
from torch import Tensor
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from stratakv.kernels.pq_scores import _first_rows
from stratakv.retrieval import IndexParams
from stratakv.retrieval.index import Index, Rows
from stratakv.retrieval.scoring import Ranking
from stratakv.retrieval.structures.box_tree import BoxTree

RANKED = {"a2ats", "bounds", "dense", "leoam", "oracle", "shadowkv", "spectral", "window"}
SHAPES = [(2, 3, 16), (1, 1, 32), (1, 9, 16)]
SETTINGS = {
    "a2ats": ["", ":shared=1", ":zones=5", ":zones=3:shared=1"],
    "leoam": [":width=99", ":width=99:chunk=4", ":width=99:chunk=24"],
    "shadowkv": ["", ":chunk=4:refine=2"],
}
"""Settings that choose in another way. With this `width` nothing is ruled out by `leoam`'s search."""
CASES = [
    pytest.param(case, settings, id=case.name + settings)
    for case in INDEX_CASES
    if case.name in RANKED
    for settings in SETTINGS.get(case.name, [""])
]
WHOLE = [case for case in CASES if case.values[0].name != "shadowkv"]
"""Rankings that choose all that is read."""
every_ranking = pytest.mark.parametrize(("case", "settings_of"), CASES)


def rows_of(state: Any) -> Iterator[Rows]:
    """Everything in a state that grows with the text."""
    if isinstance(state, Rows):
        yield state
    elif isinstance(state, BoxTree):
        yield from state._levels
    elif is_dataclass(state):
        for field in fields(state):
            yield from rows_of(getattr(state, field.name))


def make_room(state: Any, more: int) -> None:
    """For `more` rows than there are; they hold what nobody may look at."""
    for rows in rows_of(state):
        groups, _, width = rows.buffer.shape
        is_float = rows.buffer.dtype.is_floating_point
        poison = float("nan") if is_float else torch.iinfo(rows.buffer.dtype).max
        wider = rows.buffer.new_full((groups, rows.count + more, width), poison)
        wider[:, : rows.count] = rows.data
        rows.buffer = wider


def ranking_of(index: Any, state: Any) -> Ranking:
    ranking = index.ranking(state)
    assert isinstance(ranking, Ranking)
    return ranking


def ranked(ranking: Ranking, q: Tensor, total: Tensor, num_units: int) -> list[Tensor]:
    """The scores of the first `num_units`, and what is rebuilt besides those of these that are chosen."""
    scores = [ranking.scores(q, total)[:, :num_units]]
    if ranking.rebuilding is None:
        return scores
    ids, counts, rebuilt = rebuilt_units(ranking, q, total, num_units, num_units * 3 // 4)
    return [*scores, ids, counts, *rebuilt]


def test_the_list_is_complete() -> None:
    has_one = set()
    for case in INDEX_CASES:
        index = case.make(PARAMS[0])
        if index.ranking(index.build(draw((3, 3, 64), PARAMS[0], pages=8)[0])) is not None:
            has_one.add(case.name)
    assert has_one == RANKED


@pytest.mark.parametrize(("case", "settings_of"), WHOLE)
@settings(max_examples=12, derandomize=True, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1), shape=st.sampled_from(SHAPES), params=st.sampled_from(PARAMS),
    more=st.sampled_from([0, 1, 50]), data=st.data(),
)  # fmt: skip
def test_what_is_chosen_is_what_select_chooses(
    case: IndexCase, settings_of: str, seed: int, shape: Any, params: IndexParams, more: int, data: st.DataObject
) -> None:
    pages = data.draw(st.integers(forced_pages(params) + 2, 30))
    keys, q = draw(shape, params, seed=seed, pages=pages + 5)
    index = case.make(params, shape, settings_of)
    state, total = index.build(keys), (pages + data.draw(st.integers(0, 5))) * params.page_size
    make_room(state, more)
    budget = data.draw(st.integers((forced_pages(params) + 1) * params.page_size, total - 1))
    chosen, ranking = index.select(state, q, total, budget), ranking_of(index, state)
    assert ranking.unit == chosen.unit
    assert ranking.room * ranking.unit >= total
    scores = ranking.scores(q, torch.tensor([total // ranking.unit]))
    assert scores.shape == (shape[0], ranking.room)
    assert scores.dtype == torch.float32
    found = chosen_units(ranking, scores, total, budget if case.keeps_budget else total)
    assert found.shape == chosen.ids.shape
    for row, mine, theirs in zip(scores, found.tolist(), chosen.ids.tolist(), strict=True):
        differ = row[sorted({*mine} ^ {*theirs})]
        assert not len(differ) or differ.max() - differ.min() <= 1e-5 * differ.abs().max(), "but for rounding"


@every_ranking
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_no_bit_depends_on_the_room(case: IndexCase, settings_of: str, shape: Any) -> None:
    """Nor on what lies there, nor on how the state came about."""
    params = PARAMS[3]
    for pages in (9, 300):
        keys, q = draw(shape, params, pages=pages)
        index = case.make(params, shape, settings_of)
        state = index.build(keys)
        ranking = ranking_of(index, state)
        units = keys.shape[1] // ranking.unit
        total = torch.tensor([units])
        expected = ranked(ranking, q, total, units)
        assert all(torch.isfinite(tensor).all() for tensor in expected)
        for more in (1, 7, 1024, 3000):
            make_room(state, more)
            assert_same(ranked(ranking_of(index, state), q, total, units), expected)
        assert_same(ranked(ranking_of(index, index.copy(state)), q, total, units), expected)


def assert_same(found: list[Tensor], expected: list[Tensor]) -> None:
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def drawn(case: IndexCase, settings_of: str) -> tuple[Index, Ranking, Tensor, int]:
    """An index, its ranking of 20 pages, a query, and how many units there are."""
    keys, q = draw(SHAPES[0], PARAMS[0], pages=20)
    index = case.make(PARAMS[0], SHAPES[0], settings_of)
    ranking = ranking_of(index, index.build(keys))
    return index, ranking, q, 20 * 16 // ranking.unit


@every_ranking
def test_nothing_returns_to_the_host(case: IndexCase, settings_of: str) -> None:
    """Tensors without numbers can be ranked all the same: no number is looked at, and no shape follows from one."""
    _, ranking, q, units = drawn(case, settings_of)
    total = torch.tensor([units])
    expected = ranked(ranking, q, total, units)
    with FakeTensorMode(allow_non_fake_inputs=True) as fake:
        q, total = fake.from_tensor(q), fake.from_tensor(total)
        found = ranked(ranking, q, total, units)
        assert [(some.shape, some.dtype) for some in found] == [(some.shape, some.dtype) for some in expected]
        with pytest.raises(DataDependentOutputException):
            total.item()


class Seen(TorchDispatchMode):
    """Where the tensors lie that operations read and none of them made."""

    def __init__(self) -> None:
        super().__init__()
        self.read: set[int] = set()
        self.made: list[Tensor] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {where(leaf) for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor) and leaf.dim()}
        self.read |= given - {where(tensor) for tensor in self.made}
        result = func(*args, **(kwargs or {}))
        self.made += [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor) and where(leaf) not in given]
        return result


def where(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


@every_ranking
def test_it_says_what_it_reads(case: IndexCase, settings_of: str) -> None:
    index, ranking, q, units = drawn(case, settings_of)
    total = torch.tensor([units])
    ranked(ranking, q, total, units)  # what kernels keep for later is made
    kept = {where(_first_rows(2, index._widths(16)[0], 256, 64))} if case.name == "spectral" else set()
    with Seen() as seen:
        ranked(ranking, q, total, units)
    told = {where(tensor) for tensor in ranking.reads}
    assert told <= seen.read
    assert seen.read - told <= {where(q), where(total), *kept}
