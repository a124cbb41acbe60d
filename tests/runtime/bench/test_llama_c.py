"""llama.cpp beside us: what bench and tests call of it does what they take it for."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from beside import by_transformers, needs_llama_cpp, text
from gguf_models import SPECIAL, random_model, write_gguf

from stratakv.runtime.bench import llama_c
from stratakv.runtime.bench.llama_c import LlamaCppError, LlamaModel

pytestmark = needs_llama_cpp


@pytest.fixture(scope="module")
def model() -> Any:
    return random_model("llama", num_hidden_layers=2, head_dim=32)


@pytest.fixture(scope="module")
def path(model: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    (path,) = write_gguf(tmp_path_factory.mktemp("llama") / "caf\u00e9.gguf", model, "llama")
    return path


@pytest.fixture
def llama(path: Path) -> Iterator[LlamaModel]:
    loaded = LlamaModel(path, context=300, rows=64)
    yield loaded
    loaded.close()


def test_logits_are_those_of_every_position_however_the_text_is_cut(llama: LlamaModel, model: Any) -> None:
    ids = text(200)
    expected = by_transformers(model, ids, len(ids))
    assert llama.vocabulary_size == expected.shape[1]
    assert abs(llama.extend(ids, every=True) - expected).max() < 1e-4 * abs(expected).max()
    llama.clear()
    for first, last in ((0, 1), (1, 130), (130, 200)):
        (found,) = llama.extend(ids[first:last])
        assert abs(found - expected[last - 1]).max() < 1e-4 * abs(expected).max()


def test_a_cache_in_8_bits_is_one(path: Path, llama: LlamaModel) -> None:
    """Its keys are rounded, and no more than that."""
    ids, coarse = text(200), LlamaModel(path, context=300, kv="q8_0", flash=True)
    expected, found = llama.extend(ids), coarse.extend(ids)
    coarse.close()
    assert 1e-4 < abs(found - expected).max() / abs(expected).max() < 0.1


def test_text_becomes_tokens_with_and_without_control_tokens(llama: LlamaModel) -> None:
    assert llama.tokenize(SPECIAL[1], special=True) == [1]
    plain = llama.tokenize(SPECIAL[1])
    assert len(plain) == len(SPECIAL[1])
    assert llama.tokenize("", begin=True) in ([], [0])
    assert llama.tokenize("th") == [260]


def test_what_ends_a_reply(llama: LlamaModel) -> None:
    assert [token for token in range(llama.vocabulary_size) if llama.ends(token)] == [0, 2]


def test_a_refusal_is_in_its_own_words(tmp_path: Path) -> None:
    (tmp_path / "no.gguf").write_bytes(b"GGUF")
    with pytest.raises(LlamaCppError, match="failed to load model"):
        LlamaModel(tmp_path / "no.gguf", context=64)


def test_too_long_a_text_is_refused(path: Path) -> None:
    llama = LlamaModel(path, context=256)
    llama.extend(text(200))
    with pytest.raises(LlamaCppError, match="300 tokens, its context has 256"):
        llama.extend(text(100))
    llama.close()


def test_other_structures_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(llama_c._DEFAULTS, "batch", 4096)
    llama_c._library.cache_clear()
    with pytest.raises(LlamaCppError, match="has other structures than are known here"):
        llama_c._library()


@pytest.mark.parametrize("kind", ["F16", "Q4_0", "Q8_0", "MXFP4"])
def test_quantised_numbers_are_expanded_as_by_gguf(kind: str) -> None:
    of = gguf.GGMLQuantizationType[kind]
    data = gguf.quantize(np.random.default_rng(0).standard_normal((4, 256)).astype(np.float32), of).view(np.uint8)
    assert (llama_c.expand(data, int(of)) == gguf.dequantize(data, of).ravel()).all()
