"""Settings take what means the same, and name what does not."""

from __future__ import annotations

import enum
import json
import os
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stratakv.runtime import GenerationConfig, KVConfig, StratakvError, WrongTypeError
from stratakv.runtime.api.config import MAX_STOP_CHARACTERS, MAX_STOPS
from stratakv.runtime.sessions.saved_generation import from_notes, to_notes


class Seven(enum.IntEnum):
    IT = 7


class Word(str, enum.Enum):  # noqa: UP042
    """What `str()` makes of a member is its name."""

    FLOAT32 = "float32"


class Counts:
    def __index__(self) -> int:
        return 7


class Measures:
    def __float__(self) -> float:
        return 0.5


class Folder:
    def __fspath__(self) -> str:
        return "x"


class Unspeakable:
    def __repr__(self) -> str:
        raise RuntimeError("no")


WHOLE: list[Any] = [
    7, 7.0, np.int64(7), np.uint8(7), np.float32(7), Fraction(7), Decimal(7), np.array(7), np.array(7.0),
    torch.tensor(7), torch.tensor(7.0, requires_grad=True), Seven.IT, Counts(), np.longdouble(7),
]  # fmt: skip
REAL: list[Any] = [
    0.5, np.float64(0.5), np.float32(0.5), Fraction(1, 2), Decimal("0.5"), np.array(0.5), torch.tensor(0.5),
    torch.tensor(0.5, dtype=torch.bfloat16), Measures(), np.longdouble(0.5),
]  # fmt: skip
NO_NUMBER: list[Any] = [
    "7", "x", [7], {}, True, np.bool_(True), 7j, object(), b"7", np.str_("7"), np.array("7"), np.array(True),
    torch.tensor(True), np.array([7]), torch.tensor([7]), np.timedelta64(7, "ns"), np.complex64(7), np.ma.masked,
    torch.empty((), device="meta"), Decimal("sNaN"), list(range(10_000)), np.zeros((100, 100)), int, Unspeakable(),
]  # fmt: skip
NO_TEXT: list[Any] = [5, [5], b"a", [b"a"], object(), {"a": 1}, bytearray(b"a"), "\ud800", ["\ud800"], np.array(5)]
HUGE: list[Any] = [10**5000, -(10**5000), Fraction(10**5000, 3), Decimal("1e4000"), 1 << 200]

TAKEN: dict[tuple[type[Any], str], list[Any]] = {
    **{(GenerationConfig, name): WHOLE for name in ("max_new_tokens", "top_k", "seed", "max_repeats")},
    **{(GenerationConfig, name): REAL for name in ("temperature", "top_p", "min_p", "repetition_penalty")},
    **{(GenerationConfig, name): [True, False, np.bool_(True), np.array(True), torch.tensor(False)]
       for name in ("do_sample", "drop_thinking", "ignore_eos")},
    (GenerationConfig, "stop_strings"): [
        None, "a", ["a", "b"], ("a",), iter(["a"]), "", [""], np.array(["a", "b"]), np.array("a"), Word.FLOAT32, {"a"},
        ["a"] * MAX_STOPS, "a" * MAX_STOP_CHARACTERS,
    ],
    **{(KVConfig, name): [None, *REAL, 3, np.int32(3)] for name in ("gpu_gb", "host_gb", "disk_gb")},
    **{(KVConfig, name): WHOLE for name in ("sink", "local", "page_size")},
    (KVConfig, "state_every"): [None, 0, 64, 128.0, np.int64(192)],
    (KVConfig, "budget"): [512, 512.0, np.int64(512), 0.25, np.float32(0.25)],
    (KVConfig, "path"): [None, "x", Path("x"), Folder(), "a b", os.fsdecode(b"\xff"), "~"],
    (KVConfig, "profile"): [None, "x", Path("x"), Folder()],
    (KVConfig, "index"): ["dense", "shadowkv:rank=64", np.str_("dense")],
    (KVConfig, "placement"): [None, "h2o", "snapkv:keep=0.5,mode=hot", "snapkv:window=8:keep=100", np.str_("h2o")],
    (KVConfig, "dtype"): ["auto", "float32", Word.FLOAT32, torch.float32],
    (KVConfig, "prefetch"): ["auto", "on", "off"],
    (KVConfig, "codec"): ["zstd", "raw"],
}  # fmt: skip
REFUSED: dict[tuple[type[Any], str], list[Any]] = {
    **{(GenerationConfig, name): [*NO_NUMBER, *HUGE, 7.5, float("nan"), float("inf"), -7, None, 0]
       for name in ("max_new_tokens",)},
    (GenerationConfig, "top_k"): [*NO_NUMBER, *HUGE, 7.5, float("nan"), -1, None],
    (GenerationConfig, "seed"): [*NO_NUMBER, *HUGE, 7.5, Decimal("7.5"), -1, 1 << 64],
    (GenerationConfig, "max_repeats"): [*NO_NUMBER, 7.5, -1, 1, 1 << 64],
    (GenerationConfig, "temperature"): [
        *NO_NUMBER, *HUGE[:3], None, Decimal("NaN"), 0, -1, float("nan"), float("inf"), 1 << 2000,
    ],
    (GenerationConfig, "top_p"): [*NO_NUMBER, None, 0, 1.1, float("nan")],
    (GenerationConfig, "min_p"): [*NO_NUMBER, None, -0.1, 1, float("nan")],
    (GenerationConfig, "repetition_penalty"): [*NO_NUMBER, None, 0, float("nan"), float("inf")],
    **{(GenerationConfig, name): ["False", "no", 0, 1, None, [], np.int64(1)]
       for name in ("do_sample", "drop_thinking", "ignore_eos")},
    (GenerationConfig, "stop_strings"): [*NO_TEXT, ["a"] * (MAX_STOPS + 1), "a" * (MAX_STOP_CHARACTERS + 1)],
    **{(KVConfig, name): [*NO_NUMBER, -1, float("nan"), float("inf"), 1 << 2000]
       for name in ("gpu_gb", "host_gb", "disk_gb")},
    **{(KVConfig, name): [*NO_NUMBER, *HUGE, None, -1, 7.5] for name in ("sink", "local", "page_size")},
    (KVConfig, "state_every"): [*NO_NUMBER, *HUGE, -64, 7, 64.5],
    (KVConfig, "budget"): [*NO_NUMBER, *HUGE, None, 0, -1, 1.5, float("nan"), float("inf")],
    **{(KVConfig, name): [5, b"x", ["x"], "", "a\0b", "\ud800", "~nobody-of-this-name/x"]
       for name in ("path", "profile")},
    **{(KVConfig, name): [5, None, ["x"], "no such thing", torch.float64] for name in ("dtype", "prefetch", "codec")},
    (KVConfig, "placement"): [
        5, "no such thing", "h2o:keep=0", "h2o:keep=1.5", "h2o:keep=nan", "h2o:mode=cold", "h2o:window=8",
        "snapkv:pool=4",
    ],
    (KVConfig, "index"): [
        5, None, "no such thing", "shadowkv:rank=x", "shadowkv:rank=-1", "shadowkv:no_such_setting=1", "bounds:rank=1",
    ],
}  # fmt: skip


def test_every_setting_is_in_the_tables() -> None:
    import dataclasses

    every = {(kind, field.name) for kind in (GenerationConfig, KVConfig) for field in dataclasses.fields(kind)}
    assert every == TAKEN.keys() == REFUSED.keys()


@pytest.mark.parametrize(("kind", "name"), TAKEN, ids=lambda value: getattr(value, "__name__", value))
def test_what_means_something_is_taken_as_pythons_own_type(kind: type[Any], name: str) -> None:
    for value in TAKEN[kind, name]:
        found = getattr(kind(**{name: value}), name)
        assert found is None or type(found) in (int, float, bool, str, tuple) or isinstance(found, Path)
        if isinstance(found, tuple):
            assert {type(text) for text in found} <= {str}


@pytest.mark.parametrize(("kind", "name"), REFUSED, ids=lambda value: getattr(value, "__name__", value))
def test_what_means_nothing_is_refused_by_name(kind: type[Any], name: str) -> None:
    for value in REFUSED[kind, name]:
        with pytest.raises((ValueError, WrongTypeError)) as caught:
            kind(**{name: value})
        assert name.split("_")[0] in str(caught.value), str(caught.value)
        assert len(str(caught.value).splitlines()) == 1
        assert len(str(caught.value)) < 300


def test_wrong_types_are_type_errors_of_ours() -> None:
    with pytest.raises(WrongTypeError, match="max_new_tokens is a whole number, not '5'") as caught:
        GenerationConfig.from_kwargs(max_tokens="5")
    assert isinstance(caught.value, TypeError)
    assert isinstance(caught.value, StratakvError)


def test_whole_numbers_are_exact() -> None:
    most = (1 << 64) - 1
    assert [GenerationConfig(seed=seed).seed for seed in (most, np.uint64(most), Fraction(most))] == [most] * 3
    assert KVConfig(budget=most).budget == most


def test_an_enumerations_text_is_its_value() -> None:
    assert KVConfig(dtype=Word.FLOAT32).dtype == "float32"
    assert GenerationConfig(stop_strings=Word.FLOAT32).stop_strings == ("float32",)


SETTINGS = st.fixed_dictionaries(
    {},
    optional={
        "max_new_tokens": st.integers(1, (1 << 128) - 1) | st.just(-1),
        "do_sample": st.booleans(),
        "temperature": st.floats(1e-3, allow_infinity=False, allow_nan=False),
        "top_p": st.floats(0, 1, exclude_min=True),
        "top_k": st.integers(0, (1 << 128) - 1),
        "min_p": st.floats(0, 1, exclude_max=True),
        "repetition_penalty": st.floats(1e-3, 1e3),
        "max_repeats": st.sampled_from([0, 2, 1000]),
        "stop_strings": st.lists(st.text(st.characters(exclude_categories=["Cs"]))),
        "seed": st.none() | st.integers(0, (1 << 64) - 1),
        "drop_thinking": st.booleans(),
        "ignore_eos": st.booleans(),
    },
)


@settings(deadline=None)
@given(given_ones=SETTINGS)
def test_a_session_keeps_whatever_is_taken(given_ones: dict[str, Any]) -> None:
    config = GenerationConfig(**given_ones)
    assert from_notes(json.loads(json.dumps(to_notes(config)))) == config


@settings(deadline=None)
@given(given_ones=SETTINGS)
def test_whatever_is_taken_can_be_sampled_with(given_ones: dict[str, Any]) -> None:
    """No library behind us finds fault with it later, when the prompt has been read."""
    from stratakv.runtime.engine.sampling import Sampler

    logits = torch.linspace(-4, 4, 64)
    token = Sampler(GenerationConfig(**given_ones), torch.device("cpu")).choose(logits, np.arange(5, dtype=np.uint32))
    assert 0 <= token < 64
