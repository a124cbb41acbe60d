"""What a placement knows of a layer, what it keeps, and what steps then read, beside the same computed at once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from closeness import assert_close
from kv_pages import disk_tier
from layer_kv import KV, PAGES, QUERIES, REPEATS, SCALE, SIZE, TEXT, decode, no_damage, opened, workspace_of
from torch import Tensor

from stratakv.retrieval.params import IndexParams
from stratakv.retrieval.placement import EVERY, Placement, Rows, State, Text
from stratakv.retrieval.placement_registry import placement_spec
from stratakv.retrieval.placements.h2o import H2OOptions, H2OPlacement
from stratakv.retrieval.registry import make_index
from stratakv.runtime.layers.placed import Placed
from stratakv.runtime.layers.step import Step
from stratakv.runtime.layers.tiered import TieredLayer
from stratakv.storage import TieredStore

TOKENS, PROMPT, BUDGET = 90, 70, 24
PARAMS = IndexParams(page_size=SIZE, sink=2, local=3)
Make = Callable[..., TieredLayer]


class Uneven(Placement):
    """Keeps the tokens of even position of head 0, and of head 1 fewer."""

    name = "uneven"

    def scores(self, state: State, text: Text) -> Tensor:
        even = (text.positions % 2 == 0).float()
        return even * torch.tensor([[1.0], [0.0]])

    def keep(self, state: State, text: Text, budget: int) -> Tensor:
        return self.forced(text, budget) | (self.scores(state, text) > 0)


class Watching(Placement):
    """Notes which rows it is given, and where it is told that the prompt ends."""

    name, prunes = "watching", True

    @property
    def rows(self) -> int:
        return EVERY

    def __init__(self) -> None:
        super().__init__(PARAMS, 0, None)
        self.given: list[tuple[int, int, int]] = []

    def observe(self, state: State, rows: Rows) -> State:
        self.given.append((rows.start, rows.start + rows.queries.shape[2], rows.text.prompt))
        return {}

    def scores(self, state: State, text: Text) -> Tensor:
        return text.positions.float()


class OneWhole(H2OPlacement):
    """Keeps all of head 0, and the even tokens of head 1."""

    def keep(self, state: State, text: Text, budget: int) -> Tensor:
        return (text.positions >= 0) & ((text.positions % 2 == 0) | torch.tensor([[True], [False]]))


@pytest.fixture
def store() -> Iterator[TieredStore]:
    with opened() as store:
        yield store


@pytest.fixture
def make(store: TieredStore) -> Make:
    workspace = workspace_of(TOKENS)

    def layer(placement: str | Placement, *, index: str = "dense", into: TieredStore = store) -> TieredLayer:
        spec = placement_spec(placement if isinstance(placement, str) else "h2o")
        one = placement if isinstance(placement, Placement) else spec.make(PARAMS, 0)
        return TieredLayer(
            0, into, make_index(index, PARAMS), workspace, lambda _: BUDGET, no_damage, repeats=REPEATS, placement=one,
            is_visible=spec.is_visible,
        )  # fmt: skip

    return layer


def of(layer: TieredLayer) -> Placed:
    assert layer.placed is not None
    return layer.placed


def prefill(layer: TieredLayer, start: int, end: int, budget: int | None = None) -> None:
    """One span in two calls; what is kept then, with a budget."""
    pages, middle = slice(start // SIZE, end // SIZE), (start + end) // 2
    with layer.workspace.turns.taken():
        layer.begin()
        for first, last in ((start, middle), (middle, end)):
            layer.extend(QUERIES[:, first:last], *KV[:, :, first:last], first, SCALE)
        layer.finish(TEXT.chains[pages], TEXT.tokens[pages], end - pages.start * SIZE)
        if budget is not None:
            layer.end_prefill()
            of(layer).place(budget, 0)


def weights(rows: slice, kept: Tensor) -> Tensor:
    """The weights `[G, R, n, m]` of these rows over the tokens `kept` `[G, m]`, in fp64."""
    keys = torch.stack([KV[0, g, kept[g].clamp(min=0)] for g in range(len(kept))]).double()
    q = QUERIES[:, rows].double().view(len(kept), REPEATS, -1, KV.shape[-1]) * SCALE
    logits = q @ keys.unsqueeze(1).transpose(2, 3)
    at = torch.arange(rows.start, rows.stop)
    seen = (kept[:, None] <= at[:, None]) & (kept[:, None] >= 0)
    return logits.masked_fill(~seen.unsqueeze(1), -torch.inf).softmax(-1)


EVERYTHING = torch.arange(TOKENS).expand(2, -1)


def test_a_prompt_in_spans_is_judged_as_at_once(make: Make) -> None:
    layer, start = make("h2o:keep=0.5"), 0
    for end in (30, 41, PROMPT):
        prefill(layer, start, end)
        start = end
    assert of(layer).kept.end == PROMPT
    assert_close("mass", of(layer).kept.state["mass"], weights(slice(0, PROMPT), EVERYTHING[:, :PROMPT]).mean(1).sum(1))


def test_the_last_rows_of_a_prompt_vote_across_its_spans(make: Make) -> None:
    layer = make("snapkv:window=40:pool=1")
    prefill(layer, 0, 41)
    prefill(layer, 41, PROMPT, budget=PROMPT)
    votes = weights(slice(PROMPT - 40, PROMPT), EVERYTHING[:, :PROMPT]).mean((1, 2))
    assert_close("votes", of(layer).kept.state["votes"], votes)


@pytest.mark.parametrize("placement", ["h2o:keep=0.5", "snapkv:window=4", Uneven(PARAMS, 0, None)])
def test_a_step_reads_what_is_kept_and_nothing_else(make: Make, placement: str | Placement) -> None:
    """Of heads that keep as many tokens as each other, and of others."""
    layer, told = make(placement), []
    prefill(layer, 0, PROMPT, budget=BUDGET)
    layer.watch = lambda _, step: told.append((step, of(layer).kept.positions, layer.sealed))
    found = decode(layer, PROMPT, TOKENS)
    for row, (step, positions, sealed) in enumerate(told):
        assert isinstance(step, Step)
        expected = torch.cat([self_attention(g, positions[g], sealed, PROMPT + row) for g in range(2)])
        assert_close("out", found[:, row], expected)
    held = (of(layer).kept.positions >= 0).sum(1)
    assert held.max() < TOKENS


def test_what_went_is_read_as_one_token_for_all_of_it(make: Make) -> None:
    """At each step of a reply that lets go of more, page by page."""
    layer, told = make("razor"), []
    prefill(layer, 0, PROMPT, budget=BUDGET)
    layer.watch = lambda _, step: told.append((of(layer).kept.positions, layer.sealed))
    found = decode(layer, PROMPT, TOKENS)
    gone = []
    for row, (positions, sealed) in enumerate(told):
        for g in range(2):
            kept = positions[g][(positions[g] >= 0) & (positions[g] < sealed)]
            away = torch.tensor(sorted({*range(sealed)} - {*kept.tolist()}))
            kept = torch.cat([kept, torch.arange(sealed, PROMPT + row + 1)])
            keys, values = torch.cat([KV[:, g, kept], KV[:, g, away].mean(1, keepdim=True)], 1).double()
            heads = slice(g * REPEATS, (g + 1) * REPEATS)
            logits = QUERIES[heads, PROMPT + row].double() @ keys.T * SCALE
            logits[:, -1] += torch.tensor(len(away)).log()
            assert_close("out", found[heads, row], logits.softmax(-1) @ values)
            gone.append(len(away))
    assert min(gone) < max(gone)


def self_attention(g: int, positions: Tensor, sealed: int, at: int) -> Tensor:
    """Attention `[R, D]` of the token `at` over the sealed tokens in `positions` and all after those."""
    kept = torch.cat([positions[(positions >= 0) & (positions < sealed)], torch.arange(sealed, at + 1)])
    keys, values = KV[:, g, kept].double()
    q = QUERIES[g * REPEATS : (g + 1) * REPEATS, at].double()
    return (q @ keys.T * SCALE).softmax(-1) @ values


def test_a_reply_keeps_to_the_budget_and_its_rows_count(make: Make) -> None:
    """Each page's rows attend to what was kept when it was full, and the least go."""
    layer = make(f"h2o:keep={BUDGET}")
    prefill(layer, 0, 68, budget=BUDGET)
    before = of(layer).kept
    decode(layer, 68, 72)
    after = of(layer).kept
    columns = torch.cat([before.positions, torch.arange(68, 72).expand(2, -1)], 1)
    mass = torch.cat([before.state["mass"], torch.zeros(2, 4)], 1)
    mass = mass + weights(slice(68, 72), columns).mean(1).sum(1)
    for g in range(2):
        places = torch.searchsorted(columns[g], after.positions[g])
        assert torch.equal(columns[g][places], after.positions[g])
        assert_close("mass", after.state["mass"][g], mass[g, places].float())
        left = mass[g, [i for i in range(columns.shape[1]) if i not in places.tolist()]]
        scored = [i for i in places.tolist() if 2 <= columns[g, i] < 72 - BUDGET // 2]
        assert left.max() <= mass[g, scored].min()
    assert (after.positions >= 0).sum(1).tolist() == [BUDGET, BUDGET]


def test_a_placement_is_told_what_is_a_reply(make: Make) -> None:
    """Also after it came back from a session, and of a second prompt."""
    one = Watching()
    layer, again = make(one), make(one)
    prefill(layer, 0, 66, budget=BUDGET)
    assert one.given == [(0, 33, 33), (33, 66, 66)]
    decode(layer, 66, 74)
    assert one.given[2:] == [(66, 68, 66), (68, 72, 66)]
    prefill(again, 0, 74)
    of(again).restore(of(layer).export(), 74)
    one.given.clear()
    prefill(layer, 74, 90, budget=BUDGET)
    assert one.given == [(72, 74, 66), (74, 82, 82), (82, 90, 90)]
    assert of(again).kept.prompt == 66
    of(again).truncate(40)
    assert of(again).kept.prompt == 40


def test_a_text_of_which_one_head_keeps_all_is_not_whole(make: Make) -> None:
    """The other head's columns are of the tokens that it kept, also where the next prompt's rows look at them."""
    layer = make(OneWhole(PARAMS, 0, H2OOptions()))
    prefill(layer, 0, 40, budget=BUDGET)
    before = of(layer).kept
    assert (before.positions >= 0).sum(1).tolist() == [40, 20]
    prefill(layer, 40, PROMPT)
    columns = torch.cat([before.positions, torch.arange(40, PROMPT).expand(2, -1)], 1)
    mass = torch.cat([before.state["mass"], torch.zeros(2, PROMPT - 40)], 1)
    mass = mass + weights(slice(40, PROMPT), columns).mean(1).sum(1)
    assert_close("mass", of(layer).kept.state["mass"], mass.float())


def test_a_point_of_the_past_comes_back_whole(make: Make) -> None:
    layer = make(f"h2o:keep={BUDGET}")
    prefill(layer, 0, PROMPT, budget=BUDGET)
    decode(layer, PROMPT, PROMPT + 1)
    point, kept = layer.snapshot(), of(layer).kept
    first = decode(layer, PROMPT + 1, 80)
    layer.rollback(point)
    assert of(layer).kept is kept
    assert torch.equal(decode(layer, PROMPT + 1, 80), first)
    layer.undo_step(layer.tail_len, 80)
    layer.truncate(10)
    assert of(layer).kept.end == 40
    assert of(layer).kept.positions.max() < 40
    assert of(layer).kept.state["mass"].shape == of(layer).kept.positions.shape
    assert of(layer).num_bytes == of(layer).kept.positions.numel() * (8 + 4)


def test_what_cannot_have_been_kept_is_not_believed(make: Make) -> None:
    """Then all of the text is."""
    layer, other = make(f"h2o:keep={BUDGET}"), make(f"h2o:keep={BUDGET}")
    prefill(layer, 0, PROMPT, budget=BUDGET)
    prefill(other, 0, PROMPT)
    tensors = of(layer).export()
    of(other).restore(tensors, PROMPT)
    assert torch.equal(of(other).kept.positions, of(layer).kept.positions)
    of(other).restore({**tensors, "positions": EVERYTHING[:, :BUDGET]}, PROMPT)
    assert torch.equal(of(other).kept.positions, EVERYTHING[:, :PROMPT])


def test_hot_pages_stay_where_others_go_down(make: Make, tmp_path: Path) -> None:
    """With room for a third of a text, the pages of kept tokens are in memory afterwards, whatever came last."""
    with opened(disk_tier(tmp_path), host=PAGES // 3 + 2) as store:
        layer = make("snapkv:window=4:pool=1:mode=hot", index="bounds", into=store)
        prefill(layer, 0, 32)
        store.flush()
        prefill(layer, 32, 64, budget=16)
        store.flush()
        kept = of(layer).kept.positions
        held = torch.bincount(kept[kept >= 0] // SIZE, minlength=16)
        best = held.flip(0).sort(descending=True, stable=True).indices[:4]
        hot = (15 - best).sort().values.numpy()
        layer.reader.pages(hot)
        for others in np.setdiff1d(np.arange(16), hot).reshape(-1, 4):
            layer.reader.pages(others)
        assert store.is_resident(layer.pids[hot]).all()
        layer.close()
