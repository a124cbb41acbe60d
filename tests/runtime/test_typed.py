"""Settings take what means the same, and name what does not."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stratakv.runtime import GenerationConfig, KVConfig, StratakvError, WrongTypeError

WHOLE: list[Any] = [7, 7.0, np.int64(7), np.uint8(7), np.float32(7), Fraction(7)]
REAL: list[Any] = [0.5, np.float64(0.5), np.float32(0.5), Fraction(1, 2)]
NO_NUMBER: list[Any] = ["7", "x", [7], {}, True, np.bool_(True), 7j, object(), b"7"]

TAKEN: dict[tuple[type[Any], str], list[Any]] = {
    **{(GenerationConfig, name): WHOLE for name in ("max_new_tokens", "top_k", "seed", "max_repeats")},
    **{(GenerationConfig, name): REAL for name in ("temperature", "top_p", "min_p", "repetition_penalty")},
    **{(GenerationConfig, name): [True, False, np.bool_(True)] for name in ("do_sample", "ignore_eos")},
    (GenerationConfig, "stop_strings"): [None, "a", ["a", "b"], ("a",), iter(["a"]), "", [""]],
    **{(KVConfig, name): [None, *REAL, 3, np.int32(3)] for name in ("gpu_gb", "host_gb", "disk_gb")},
    **{(KVConfig, name): WHOLE for name in ("sink", "local", "page_size")},
    (KVConfig, "budget"): [512, 512.0, np.int64(512), 0.25, np.float32(0.25)],
    (KVConfig, "path"): [None, "x", Path("x")],
    (KVConfig, "profile"): [None, "x", Path("x")],
    (KVConfig, "index"): ["dense", "shadowkv:rank=64"],
    (KVConfig, "dtype"): ["auto", "float32"],
    (KVConfig, "prefetch"): ["auto", "on", "off"],
    (KVConfig, "codec"): ["zstd", "raw"],
}
REFUSED: dict[tuple[type[Any], str], list[Any]] = {
    **{(GenerationConfig, name): [*NO_NUMBER, 7.5, float("nan"), float("inf"), -7, None, 0]
       for name in ("max_new_tokens",)},
    (GenerationConfig, "top_k"): [*NO_NUMBER, 7.5, float("nan"), -1, None],
    (GenerationConfig, "seed"): [*NO_NUMBER, 7.5, -1, 1 << 64],
    (GenerationConfig, "max_repeats"): [*NO_NUMBER, 7.5, -1, 1, 1 << 64],
    (GenerationConfig, "temperature"): [*NO_NUMBER, None, 0, -1, float("nan"), float("inf"), 1 << 2000],
    (GenerationConfig, "top_p"): [*NO_NUMBER, None, 0, 1.1, float("nan")],
    (GenerationConfig, "min_p"): [*NO_NUMBER, None, -0.1, 1, float("nan")],
    (GenerationConfig, "repetition_penalty"): [*NO_NUMBER, None, 0, float("nan"), float("inf")],
    **{(GenerationConfig, name): ["False", "no", 0, 1, None, [], np.int64(1)] for name in ("do_sample", "ignore_eos")},
    (GenerationConfig, "stop_strings"): [5, [5], b"a", [b"a"], object()],
    **{(KVConfig, name): [*NO_NUMBER, -1, float("nan"), float("inf"), 1 << 2000]
       for name in ("gpu_gb", "host_gb", "disk_gb")},
    **{(KVConfig, name): [*NO_NUMBER, None, -1, 7.5] for name in ("sink", "local", "page_size")},
    (KVConfig, "budget"): [*NO_NUMBER, None, 0, -1, 1.5, float("nan"), float("inf")],
    **{(KVConfig, name): [5, b"x", ["x"]] for name in ("path", "profile")},
    **{(KVConfig, name): [5, None, ["x"], "no such thing"] for name in ("index", "dtype", "prefetch", "codec")},
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


@pytest.mark.parametrize(("kind", "name"), REFUSED, ids=lambda value: getattr(value, "__name__", value))
def test_what_means_nothing_is_refused_by_name(kind: type[Any], name: str) -> None:
    for value in REFUSED[kind, name]:
        with pytest.raises((ValueError, WrongTypeError)) as caught:
            kind(**{name: value})
        assert name.split("_")[0] in str(caught.value), f"{value!r}: {caught.value}"
        assert len(str(caught.value)) < 300


def test_wrong_types_are_type_errors_of_ours() -> None:
    with pytest.raises(WrongTypeError, match="max_new_tokens is a whole number, not '5'") as caught:
        GenerationConfig.from_kwargs(max_tokens="5")
    assert isinstance(caught.value, TypeError)
    assert isinstance(caught.value, StratakvError)
