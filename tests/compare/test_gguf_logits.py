"""Every architecture and every setting that a GGUF file can have: logits are transformers' and llama.cpp's, however the
text is read. A few of them in every run, all of them, and long texts, with `make compare`."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from beside import OF_LLAMA_CPP, OF_TRANSFORMERS, assert_close, by_llama_cpp, by_transformers, by_us, text
from gguf_cases import cases

from stratakv.runtime import locate
from stratakv.runtime.bench import llama_c

ALL = bool(os.environ.get("COMPARE"))
ORIGINAL, TOKENS = 256, 400
LONG_ORIGINAL, LONG_TOKENS = 2048, 5000
CASES, LONG_CASES = cases(ORIGINAL), cases(LONG_ORIGINAL)
OFTEN = [
    "llama, Llama 3.1's frequencies", "llama, yarn with betas", "llama, biases", "llama, scaled", "qwen2, yarn",
    "qwen3, fused", "gemma3, linear", "gemma3, kinds by layer", "phi3, window", "phi3, longrope", "olmo2", "smollm3",
]  # fmt: skip
"""At least one of each architecture."""


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locate, "cache_dir", lambda: tmp_path / "cache")


@pytest.mark.parametrize("name", CASES if ALL else OFTEN)
def test_a_text_is_read_as_the_file_says(name: str, tmp_path: Path) -> None:
    case = CASES[name]
    compare(name, text(ORIGINAL - 28 if case.short else TOKENS), ORIGINAL, tmp_path)


@pytest.mark.skipif(not ALL, reason="long texts: `make compare`")
@pytest.mark.parametrize("name", LONG_CASES)
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
