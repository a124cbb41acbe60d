"""A directory's tokenizer is transformers' own, or reads tokenizer.json alone where that says everything."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from gguf_tokenizers import keys, loaded, words
from tokenizers import Tokenizer
from vocabularies import VOCABULARIES

from stratakv.runtime.model.gguf.tokenizer import write_tokenizer
from stratakv.runtime.model.tokens import load_tokenizer

BYTES = VOCABULARIES["bytes"]


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "qwen3", "gemma3_text", "phi3", "olmo2", "smollm3"])
def test_transformers_takes_it_as_it_is_in_every_family(family: str, tmp_path: Path) -> None:
    """It has classes for some families, which split as those families do, whatever tokenizer.json says."""
    tokenizer = loaded(BYTES | {"tokenizer.ggml.pre": "deepseek-llm"}, tmp_path, family)
    text = "x1234567 don't\n½"
    assert tokenizer(text).input_ids == Tokenizer.from_file(str(tmp_path / "tokenizer.json")).encode(text).ids
    assert words(tokenizer.backend_tokenizer, text) == ["x", "1234567", " don", "'", "t", "\n", "½"]


@pytest.mark.parametrize("tokens", [
    ["a", "", "b", ""], ["\0", "\x7f", "\u2028", '"', "\\"], ["<0x00>", "<0x", "$A", "[CLS] a:0"],
], ids=["empty", "signs", "as in templates"])  # fmt: skip
def test_odd_tokens_keep_their_ids(tokens: list[str], tmp_path: Path) -> None:
    """BOS among them: transformers has a little language for where it is put, which its text may not be read as."""
    last = len(tokens) - 1
    stated = keys("gpt2", tokens, 3, bos_token_id=last, add_bos_token=True)
    write_tokenizer(Path("file.gguf"), stated, tmp_path)
    tokenizer = load_tokenizer(tmp_path, SimpleNamespace(model_type="llama"))
    assert tokenizer("").input_ids == [last]
    assert [tokenizer.convert_tokens_to_ids(token) for token in tokens if token] == [
        number for number, token in enumerate(tokens) if token
    ]


@pytest.mark.parametrize(("family", "is_plain"), [("llama", True), ("qwen2", False)])
def test_the_table_of_all_models_is_asked_where_the_family_may_have_a_class_of_its_own(
    family: str, is_plain: bool, tiny_llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[dict[str, Any]] = []
    theirs = SimpleNamespace()
    monkeypatch.setattr(
        "transformers.AutoTokenizer.from_pretrained", lambda directory, **how: (asked.append(how), theirs)[1]
    )
    config = SimpleNamespace(model_type=family)
    found = load_tokenizer(tiny_llama, config)
    if is_plain:
        assert asked == []
        assert found("A b").input_ids == Tokenizer.from_file(str(tiny_llama / "tokenizer.json")).encode("A b").ids
    else:
        assert found is theirs
        assert asked == [{"config": config, "local_files_only": True, "trust_remote_code": False}]
