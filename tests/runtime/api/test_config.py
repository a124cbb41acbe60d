"""Settings: how many tokens a budget means, and how arguments, defaults and a batch's seeds come together."""

from __future__ import annotations

from typing import Any

import pytest

from stratakv.runtime import GenerationConfig, KVConfig


def test_two_names_of_one_setting_are_not_both_given() -> None:
    with pytest.raises(ValueError, match="max_tokens is another name of max_new_tokens"):
        GenerationConfig.from_kwargs(max_tokens=5, max_new_tokens=6)


def test_a_budget_in_tokens_is_the_same_for_every_context() -> None:
    assert {KVConfig(budget=512).budget_tokens(context) for context in (1, 512, 10**6)} == {512}


def test_a_budget_that_is_a_share_grows_with_the_context() -> None:
    """Rounded up, and never less than what is always read."""
    config = KVConfig(budget=0.25)
    assert [config.budget_tokens(context) for context in (1000, 1001, 4000)] == [250, 251, 1000]
    assert config.budget_tokens(10) == config.min_budget


@pytest.mark.parametrize(
    ("changes", "least"),
    [
        ({}, (1 + 4 + 2) * 16),
        ({"sink": 0, "local": 0}, 2 * 16),
        ({"sink": 17, "local": 64}, (2 + 4 + 2) * 16),
        ({"sink": 4, "local": 64, "page_size": 4}, (1 + 16 + 2) * 4),
    ],
)
def test_the_least_budget_is_what_is_always_read_in_whole_pages_and_two_more(
    changes: dict[str, int], least: int
) -> None:
    assert KVConfig(**changes).min_budget == least
    assert KVConfig(**changes, budget=least).budget == least
    with pytest.raises(ValueError, match=f"budget is at least {least} tokens, not {least - 1}: sink"):
        KVConfig(**changes, budget=least - 1)


def test_states_lie_where_pages_end_and_a_text_can_be_cut() -> None:
    assert [KVConfig(state_every=every).state_every for every in (None, 0, 64, 4096)] == [None, 0, 64, 4096]
    for page, every, least in ((16, 96, 64), (48, 64, 192), (16, -64, 64)):
        with pytest.raises(ValueError, match=f"state_every is a multiple of {least} tokens .* not {every}"):
            KVConfig(page_size=page, state_every=every)


def test_arguments_win_over_the_base_and_defaults_do_not() -> None:
    base = GenerationConfig(top_k=7, seed=3, stop_strings=("a",))
    found = GenerationConfig.from_kwargs(base, max_tokens=5, stop="b")
    assert found == GenerationConfig(top_k=7, seed=3, max_new_tokens=5, stop_strings=("b",))
    assert GenerationConfig.from_kwargs(top_k=9) == GenerationConfig(top_k=9)
    assert base == GenerationConfig(top_k=7, seed=3, stop_strings=("a",))


def test_an_unknown_argument_is_named_with_those_that_are_known() -> None:
    arguments: dict[str, Any] = {"zeal": 1, "heat": 2, "seed": 3}
    with pytest.raises(
        ValueError, match=r"^unknown generation argument\(s\) heat, zeal; known: do_sample, drop_thinking"
    ):
        GenerationConfig.from_kwargs(**arguments)


def test_each_prompt_of_a_batch_draws_with_a_seed_of_its_own() -> None:
    last = (1 << 64) - 1
    assert [config.seed for config in GenerationConfig(seed=3).of_batch(3)] == [3, 4, 5]
    assert [config.seed for config in GenerationConfig(seed=last).of_batch(2)] == [last, 0]
    assert [config.top_k for config in GenerationConfig(seed=3, top_k=7).of_batch(2)] == [7, 7]
    assert [config.seed for config in GenerationConfig().of_batch(2)] == [None, None]
