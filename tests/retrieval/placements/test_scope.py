"""What was kept of a prompt stays, and a reply has a budget of its own."""

from __future__ import annotations

import pytest
import torch
from placed_text import attention, placement, plain_text, queries, seen

from stratakv.retrieval.placement import Rows


def test_a_reply_displaces_nothing_of_its_prompt() -> None:
    """Of a reply of 20 tokens the last 4 stay, and 6 that the page's queries attend to, however little that is beside
    what they give to the prompt."""
    one, text = placement("scope:reply=10:recent=4:window=8"), plain_text(60)._replace(prompt=40)
    gone = torch.zeros(2, 40, dtype=torch.bool)
    gone[0, 5:20], gone[1, 10:25] = True, True
    columns = torch.cat([~gone, torch.ones(2, 20, dtype=torch.bool)], 1).nonzero()[:, 1].view(2, -1)
    kept_text = text._replace(positions=columns, keys=text.keys[torch.arange(2)[:, None], columns])
    state = {"votes": torch.rand(2, 45)}
    rows = Rows(queries(16), 44, kept_text)
    state |= one.observe(state, rows)
    kept = one.keep(state, kept_text, 12)
    votes = attention(rows).mean((1, 2))[:, 25:]
    for g in range(2):
        heavy = votes[g, :16].topk(6).indices.sort().values + 40
        assert columns[g][kept[g]].tolist() == [*columns[g, :25].tolist(), *heavy.tolist(), *range(56, 60)]


@pytest.mark.parametrize(("replied", "expected"), [(8, 8), (15, 9), (59, 11), (60, 12)])
def test_the_adaptive_form_grows_with_the_reply(replied: int, expected: int) -> None:
    one, text = placement("scope:delta=15:recent=8"), plain_text(30 + replied)._replace(prompt=30)
    kept = one.keep(seen(one, text, Rows(queries(1), 29 + replied, text)), text, 12)
    assert kept.sum(1).tolist() == [30 + expected] * 2


def test_a_prompt_is_chosen_as_by_snapkv() -> None:
    text = plain_text(60)
    rows = Rows(queries(8), 52, text)
    one, other = placement("scope:window=8"), placement("snapkv:window=8")
    assert torch.equal(one.keep(seen(one, text, rows), text, 20), other.keep(seen(other, text, rows), text, 20))
