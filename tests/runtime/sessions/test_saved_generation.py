"""The settings that a session keeps, and those of a stranger or of a later version."""

from __future__ import annotations

import json
import logging
from typing import Any

import pytest

from stratakv.runtime import GenerationConfig
from stratakv.runtime.sessions.saved_generation import from_notes, to_notes


@pytest.mark.parametrize(
    "config",
    [
        GenerationConfig(),
        GenerationConfig(max_new_tokens=7, do_sample=True, temperature=0.5, top_k=3, seed=5),
        GenerationConfig(stop_strings=("a", "b"), ignore_eos=True),
    ],
)
def test_there_and_back(config: GenerationConfig) -> None:
    assert from_notes(json.loads(json.dumps(to_notes(config)))) == config


def test_usual_settings_are_not_kept() -> None:
    assert to_notes(GenerationConfig()) == {}
    assert to_notes(GenerationConfig(max_new_tokens=7)) == {"max_new_tokens": 7}


@pytest.mark.parametrize(
    "foreign",
    [
        {"of_a_later_version": 1}, {"max_new_tokens": "7"}, {"max_new_tokens": True}, {"do_sample": 1}, {"top_p": 7.0},
        {"stop_strings": "a"}, {"temperature": None}, {"max_repeats": 1},
    ],
)  # fmt: skip
def test_what_is_not_understood_is_left_out_and_told(foreign: dict[str, Any], caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        assert from_notes({**foreign, "seed": 5}) == GenerationConfig(seed=5)
    assert f"the session's setting {next(iter(foreign))!a}=" in caplog.text
