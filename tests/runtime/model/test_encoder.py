"""Text becomes the tokens that it has in the whole conversation; control tokens are made of no words."""

from __future__ import annotations

from typing import Any

import pytest
import transformers
from tokenizer_kinds import KINDS, tokenizer_of
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers

from stratakv.runtime.model.encoder import Encoder, Spelled, encoder_of

WRITTEN = "<|im_start|>user {{ words }}<|im_end|>"
TEXT = "Say <|im_end|> twice:<|im_end|>"


@pytest.fixture(scope="module", params=["bytes", "gemma", "unigram"])
def made(request: pytest.FixtureRequest) -> Any:
    """Of the second, control tokens are words of its own vocabulary; the third lacks most letters of theirs."""
    return tokenizer_of(request.param)


def test_control_tokens_are_the_templates_alone(made: Any) -> None:
    encoder, end = Encoder(made, WRITTEN), made.convert_tokens_to_ids("<|im_end|>")
    assert encoder.encode(encoder.spelled(TEXT)).count(end) == 2
    assert not encoder.control & {*encoder.encode(Spelled(TEXT))}
    assert [(token, TEXT[start:stop]) for token, start, stop in encoder.found_in(TEXT)] == [(end, "<|im_end|>")] * 2


def test_what_was_broken_up_is_whole_again_and_made_of_words(made: Any) -> None:
    encoder = Encoder(made, WRITTEN)
    broken = encoder.broken(TEXT)
    assert encoder.found_in(broken) == []
    assert encoder.spelled(broken) == TEXT
    assert encoder.spelled(f"<|im_end|>{broken}") == f"{encoder.spelled('<|im_end|>')}{TEXT}"


def test_an_added_token_is_a_control_token_if_the_template_writes_it() -> None:
    made = tokenizer_of("bytes")
    table = made.convert_tokens_to_ids("<table>")
    plain, writes = Encoder(made, WRITTEN), Encoder(made, f"{WRITTEN}<table>")
    assert table not in plain.control
    assert table in writes.control
    assert table in plain.encode(Spelled("a<table>b"))
    assert table not in writes.encode(Spelled("a<table>b"))


@pytest.mark.parametrize("kind", KINDS)
def test_a_text_goes_on_from_a_log_as_in_the_whole(kind: str) -> None:
    made = tokenizer_of(kind)
    encoder, parts = Encoder(made, WRITTEN), ("The keeper", " did it.", " Yes,", "<|im_end|>", "OK.", " 12 ships")
    log: list[int] = []
    for part in parts:
        log += encoder.encode(encoder.spelled(part), log)
    assert log == made("".join(parts), add_special_tokens=False).input_ids


def test_a_log_stays_as_it_is_where_the_whole_would_be_split_otherwise() -> None:
    made = tokenizer_of("bytes")
    encoder = Encoder(made, WRITTEN)
    log = encoder.encode(Spelled("The kee"))
    assert made.decode(log + encoder.encode(Spelled("per"), log)) == "The keeper"
    assert log + encoder.encode(Spelled("per"), log) != encoder.encode(Spelled("The keeper"))


@pytest.mark.parametrize("bos", [True, False])
def test_a_text_begins_as_the_tokenizer_says_and_does_not_end(bos: bool) -> None:
    made = tokenizer_of("bytes", bos=bos, eos=True)
    assert Encoder(made, WRITTEN).begin == ([made.bos_token_id] if bos else [])


def test_a_tokenizer_keeps_the_encoder_of_its_last_template() -> None:
    made = tokenizer_of("bytes")
    first = encoder_of(made, WRITTEN)
    assert encoder_of(made, WRITTEN) is first
    assert encoder_of(made, "") is not first
    assert encoder_of(made, WRITTEN) is not first


def test_the_vocabulary_may_have_gaps() -> None:
    """Numbers that the twin gives to control tokens are words of such a tokenizer."""
    vocabulary = {"<unk>": 0, "a": 1, "<s>": 3, "b": 4, "d": 7, "c": 8, "</s>": 9}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.add_special_tokens([AddedToken("<s>"), AddedToken("</s>")])
    made = transformers.PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>")
    encoder = Encoder(made, "")
    text = "<s> a b c d </s> x"
    assert encoder.encode(encoder.spelled(text)) == made(text, add_special_tokens=False).input_ids
    assert encoder.encode(Spelled("a b c d")) == [1, 4, 8, 7]
