"""Settings as a person types them: read by the type that each has, and what is set is what a message takes."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from stratakv.runtime import GenerationConfig
from stratakv.runtime.cli.typed_settings import ALLOWED, changed, in_words, split_setting

BASE = GenerationConfig()


def setting(typed: str, base: GenerationConfig = BASE) -> GenerationConfig:
    name, value = split_setting(typed)
    assert value is not None
    return changed(base, name, value)


@pytest.mark.parametrize("word", ["False", "false", "no", "NO", "off", "0"])
def test_what_means_no_is_false(word: str) -> None:
    assert not setting(f"do_sample {word}", GenerationConfig(do_sample=True)).do_sample


@pytest.mark.parametrize("word", ["True", "yes", "on", "1"])
def test_what_means_yes_is_true(word: str) -> None:
    assert setting(f"ignore_eos {word}").ignore_eos


def test_a_temperature_samples_and_zero_is_greedy() -> None:
    warm = setting("temperature 0.9")
    assert (warm.do_sample, warm.temperature) == (True, 0.9)
    assert "sampled at temperature 0.9" in in_words(warm, "temperature")
    cold = setting("temp 0.0", warm)
    assert not cold.do_sample
    assert "greedy" in in_words(cold, "temperature")


@pytest.mark.parametrize(
    ("typed", "name", "value"),
    [
        ("max_new_tokens 1e3", "max_new_tokens", 1000),
        ("max_new_tokens 12.0", "max_new_tokens", 12),
        ("max_tokens=7", "max_new_tokens", 7),
        ("  TOP-K   =  3 ", "top_k", 3),
        ("n -1", "max_new_tokens", -1),
        ("seed 5", "seed", 5),
        ("seed None", "seed", None),
        ("repeat_penalty 1.1", "repetition_penalty", 1.1),
        ("top_p 1", "top_p", 1.0),
        ("stop_strings a b", "stop_strings", ("a b",)),
        ("stop 5", "stop_strings", ("5",)),
        ("stop None", "stop_strings", ()),
        (r"stop END\n\t\\", "stop_strings", ("END\n\t\\",)),
        ('stop ["a", "b c"]', "stop_strings", ("a", "b c")),
        ('stop " x"', "stop_strings", (" x",)),
        ("stop '\"'", "stop_strings", ('"',)),
        ("stop [red]", "stop_strings", ("[red]",)),
        ("stop a=b", "stop_strings", ("a=b",)),
    ],
)
def test_values_are_read_by_the_settings_type(typed: str, name: str, value: object) -> None:
    assert getattr(setting(typed), name) == value


@pytest.mark.parametrize(
    "typed",
    [
        "temperature hot", "temperature -1", "temperature nan", "temperature inf", "temperature 0,9", "top_p 2",
        "top_p 0", "top_k -1", "top_k 1.5", "min_p 1", "max_new_tokens 0", "max_new_tokens 12.5", "max_new_tokens many",
        "max_new_tokens 1e400", "max_new_tokens []", "seed -1", "seed x", "do_sample maybe", "do_sample 2",
        "repetition_penalty 0", 'stop [""]', "stop [1]", 'stop ""', "seed " + "9" * 5000, "ignore_eos null",
    ],
)  # fmt: skip
def test_a_wrong_value_names_setting_value_and_what_is_allowed(typed: str) -> None:
    name, value = split_setting(typed)
    assert value is not None
    with pytest.raises(ValueError, match=f"^{name} is ") as caught:
        changed(BASE, name, value)
    assert ALLOWED[name] in str(caught.value)
    assert value[:50] in str(caught.value)
    assert len(str(caught.value)) < 300


NUMBERS = st.one_of(
    st.integers().map(str), st.floats().map(str), st.decimals().map(str),
    st.sampled_from(["0", "-0", "1e3", "1e-3", "0.0005", "1001", "1e400", "1_0", " 7 ", "12.0", "٣", "1" * 45, "0x10"]),
)  # fmt: skip


def taken(call: Any) -> GenerationConfig | None:
    try:
        found: GenerationConfig = call()
    except (ValueError, TypeError):
        return None
    return found


@settings(deadline=None)
@given(
    st.sampled_from(["max_new_tokens", "top_k", "seed", "max_repeats", "temperature", "top_p", "min_p",
                     "repetition_penalty"]),
    NUMBERS | st.text(),
)  # fmt: skip
@example("temperature", "1")
@example("seed", str((1 << 64) - 1))
@example("top_k", "5.0")
def test_a_number_is_set_exactly_if_a_message_takes_it(name: str, value: str) -> None:
    """What `/set` takes no message refuses, and the other way round; both then mean the same."""
    try:
        meant: int | float | None = int(value)
    except ValueError:
        try:
            meant = float(value)
        except ValueError:
            meant = None
    if (
        not value.strip()
        or value.lower() in ("none", "null", "nothing", "random")
        or (name, meant) == ("temperature", 0)
    ):
        return  # a word of its own: nothing typed, no seed, greedy
    base = GenerationConfig(do_sample=True)
    typed = taken(lambda: changed(base, name, value))
    sent = None if meant is None else taken(lambda: GenerationConfig.from_kwargs(base, **{name: meant}))
    assert typed == sent


@settings(deadline=None)
@given(st.text(min_size=1))
@example('["a", "b"]')
@example('"\\ud800"')
def test_stop_strings_that_are_set_are_what_a_message_takes(value: str) -> None:
    found = taken(lambda: changed(BASE, "stop_strings", value))
    if found is not None:
        assert GenerationConfig.from_kwargs(BASE, stop=list(found.stop_strings)) == found


def test_every_setting_can_be_typed() -> None:
    assert set(ALLOWED) >= {field.name for field in fields(GenerationConfig)}


def test_an_unknown_setting_gets_a_suggestion() -> None:
    with pytest.raises(ValueError, match="temprature; did you mean temperature") as caught:
        split_setting("temprature 1")
    assert "top_k" in str(caught.value)


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        ("seed 5", "seed is 5 (not used now: replies are greedy)"),
        ("top_k 0", "top_k is 0 (not used now: replies are greedy)"),
        ("repetition_penalty 1.5", "repetition_penalty is 1.5"),
        ("max_new_tokens -1", "a reply may go on until there is no room (max_new_tokens=-1)"),
        ('stop ["a", "b"]', "a reply ends before 'a' or 'b'"),
        ("stop none", "no stop strings"),
    ],
)
def test_what_was_set_is_said_with_what_it_means_now(typed: str, said: str) -> None:
    name, _ = split_setting(typed)
    assert in_words(setting(typed), name) == said
    sampled = in_words(setting(typed, GenerationConfig(do_sample=True)), name)
    assert sampled == said.removesuffix(" (not used now: replies are greedy)")


def test_a_name_alone_has_no_value() -> None:
    assert [split_setting(typed) for typed in ("stop", "stop =", " Stop-Strings ")] == [("stop_strings", None)] * 3
