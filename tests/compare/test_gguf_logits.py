"""Every architecture and every setting that a GGUF file can have: logits are transformers' and llama.cpp's, however the
text is read. A few of them in every run, all of them, and long texts, with `make compare`."""

from __future__ import annotations

import os
from pathlib import Path

import gguf
import numpy as np
import pytest
from beside import (
    OF_LLAMA_CPP,
    OF_TRANSFORMERS,
    assert_close,
    by_llama_cpp,
    by_transformers,
    by_us,
    greedy_by_llama_cpp,
    greedy_by_us,
    needs_llama_cpp,
    text,
)
from gguf_cases import cases
from gguf_models import random_model, write_raw

from stratakv.runtime.bench import llama_c
from stratakv.runtime.model import locate
from stratakv.runtime.model.gguf.container import read_gguf
from stratakv.runtime.model.gguf.number_types import _is_readable as is_readable
from stratakv.runtime.model.gguf.number_types import values

ALL = bool(os.environ.get("COMPARE"))
ORIGINAL, TOKENS = 256, 400
GREEDY = 16
LONG_ORIGINAL, LONG_TOKENS = 2048, 5000
CASES, LONG_CASES = cases(ORIGINAL), cases(LONG_ORIGINAL)
OFTEN = [
    "llama, Mixtral", "llama, Llama 3.1's frequencies", "llama, yarn with betas", "llama, scaled", "qwen2, yarn",
    "qwen3, fused", "gemma3, linear", "phi3, window", "phi3, longrope", "olmo2", "olmo2, OLMo 3", "smollm3",
    "mistral3", "qwen2moe", "qwen3moe", "granite", "exaone4", "cohere2", "glm4",
    "gemma4, experts", "gemma4, E2B", "deepseek2", "gpt-oss", "lfm2", "qwen35", "qwen35moe", "qwen3next",
]  # fmt: skip
"""At least one of each architecture."""


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locate, "cache_dir", lambda: tmp_path / "cache")


@pytest.mark.parametrize("name", CASES if ALL else OFTEN)
def test_a_text_is_read_as_the_file_says(name: str, tmp_path: Path) -> None:
    case = CASES[name]
    compare(name, text(ORIGINAL - 28 if case.short else TOKENS), ORIGINAL, tmp_path)


@pytest.mark.parametrize("name", LONG_CASES if ALL else [])
def test_a_long_text_is_read_as_the_file_says(name: str, tmp_path: Path) -> None:
    case = LONG_CASES[name]
    compare(name, text(LONG_ORIGINAL - 28 if case.short else LONG_TOKENS), LONG_ORIGINAL, tmp_path)


def compare(name: str, ids: np.ndarray, original: int, folder: Path) -> None:
    case = cases(original)[name]
    model = case.model()
    (path,) = case.write(folder / "model.gguf", model)
    expected = by_transformers(model, ids, original)
    found = list(by_us(path, ids, folder, original))
    assert_close(expected, found, OF_TRANSFORMERS)
    if llama_c.is_installed() and not case.unlike_llama_cpp:
        assert_close(by_llama_cpp(path, ids, original), found, OF_LLAMA_CPP)
        if ALL:
            assert greedy_by_us(path, ids, GREEDY, folder) == greedy_by_llama_cpp(path, ids, GREEDY)


@pytest.mark.parametrize("name", [name for name in (CASES if ALL else OFTEN) if CASES[name].settings])
def test_what_the_file_says_changes_the_logits(name: str) -> None:
    """Or the tests above would hold without reading it."""
    case, ids = CASES[name], text(TOKENS)
    stated, plain = (by_transformers(model, ids, TOKENS) for model in (case.model(), random_model(case.family)))
    assert abs(stated - plain).max() > 10 * OF_LLAMA_CPP * abs(plain).max()


@needs_llama_cpp
@pytest.mark.parametrize("kind", [kind for kind in gguf.GGMLQuantizationType if is_readable(int(kind))], ids=str)
def test_numbers_of_every_type_are_expanded_as_by_llama_cpp(kind: gguf.GGMLQuantizationType, tmp_path: Path) -> None:
    """To the bit, whatever the bytes: NaN and infinity are where llama.cpp has them."""
    block, size = gguf.GGML_QUANT_SIZES[kind]
    data = np.random.default_rng(0).integers(0, 256, (6, 512 // block * size), dtype=np.uint8)
    plain = {"F32": np.float32, "F16": np.float16}.get(kind.name)
    written = ("t", data.view(plain)) if plain else ("t", data, kind)
    (tensor,) = read_gguf(write_raw(tmp_path / "m.gguf", "llama", {}, [written])).tensors.values()
    found = np.concatenate([rows.ravel() for rows in values(tensor)])
    expected = data.view(np.float32).ravel() if kind.name == "F32" else llama_c.expand(data, int(kind))
    assert np.array_equal(found, expected, equal_nan=True)
