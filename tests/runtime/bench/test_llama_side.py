"""llama.cpp takes part in a bench with the same file and one sequence, or says why it cannot."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from beside import needs_llama_cpp, text
from gguf_models import random_model, write_gguf

from stratakv.runtime.bench import llama_c
from stratakv.runtime.bench.contestant import LeftOutError
from stratakv.runtime.bench.llama_side import LlamaCpp


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    model = random_model("llama", num_hidden_layers=2, head_dim=32)
    (path,) = write_gguf(tmp_path_factory.mktemp("llama") / "caf\u00e9.gguf", model, "llama")
    return path


@needs_llama_cpp
def test_it_takes_part_in_a_bench(path: Path) -> None:
    ids = text(80)
    with pytest.raises(LeftOutError, match="its vocabulary has 261 tokens, ours 7"):
        LlamaCpp([path], 1, 100, 7)
    contestant = LlamaCpp([path], 1, 100, 261)
    contestant.begin_turn(ids[None, :64], random_kv=False)
    contestant.take_stint([[int(token)] for token in ids[64:70]], untimed=2)
    contestant.end_turn()
    contestant.begin_turn(ids[None, 70:], random_kv=False)
    contestant.end_turn()
    contestant.close()
    result = contestant.result()
    assert result["name"] == "llama.cpp q8_0"
    assert result["version"] == llama_c.version()
    assert result["first_turn"]["steps"] == 4


@needs_llama_cpp
def test_a_refusal_is_in_its_own_words(tmp_path: Path) -> None:
    (tmp_path / "no.gguf").write_bytes(b"GGUF")
    with pytest.raises(LeftOutError, match="failed to load model"):
        LlamaCpp([tmp_path / "no.gguf"], 1, 64, 0)


@needs_llama_cpp
def test_random_kv_is_a_prompt_whose_time_is_not_told(path: Path) -> None:
    """What follows is what follows the same prompt otherwise: nothing can be written into its cache."""
    followers = []
    for random_kv in (False, True):
        contestant = LlamaCpp([path], 1, 100, 261)
        contestant.begin_turn(text(64)[None], random_kv=random_kv)
        assert (contestant.turns[0].ttft_s is None) == random_kv
        followers.append(contestant._next(np.array([7])))
        contestant.close()
    assert followers[0] == followers[1]


@pytest.mark.parametrize(
    ("is_installed", "files", "batch", "why"),
    [
        (False, [Path("a.gguf")], 1, r"needs xllamacpp: pip install 'stratakv\[compare\]'"),
        (True, [], 1, "the model is no GGUF file"),
        (True, [Path("a.gguf")], 2, "measured with one sequence only"),
    ],
)
def test_who_cannot_take_part_says_why(
    is_installed: bool, files: list[Path], batch: int, why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(llama_c, "is_installed", lambda: is_installed)
    with pytest.raises(LeftOutError, match=why):
        LlamaCpp(files, batch, 64, 261)
