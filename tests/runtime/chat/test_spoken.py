"""A conversation remembers the tokens that say what was shown."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from conversation_runs import choose_letter
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from stratakv.runtime import KVConfig, Runtime
from stratakv.runtime.chat.spoken import spoken
from stratakv.runtime.model.template import Template


def template_of(words: list[str], *, prefix_space: bool = False) -> tuple[Template, Any]:
    """A byte-level tokenizer with these words as tokens, or one that puts a space before a text that begins."""
    import transformers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    level = pre_tokenizers.ByteLevel(add_prefix_space=prefix_space, use_regex=False)
    vocabulary = {token: i for i, token in enumerate(alphabet)}
    merges = []
    for word in words:
        held = level.pre_tokenize_str(word)[0][0].removeprefix("Ġ" if prefix_space and word[0] != " " else "")
        for end in range(2, len(held) + 1):
            if held[:end] not in vocabulary:
                vocabulary[held[:end]] = len(vocabulary)
                merges.append((held[: end - 1], held[end - 1]))
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    backend.pre_tokenizer, backend.decoder = level, decoders.ByteLevel()
    backend.add_special_tokens([AddedToken("<end>")])
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<end>")
    return Template(tokenizer), tokenizer


@pytest.mark.parametrize("prefix_space", [False, True])
@pytest.mark.parametrize("shown", ["", "One", "One t", "One two", "One two th", "One two thr", "One two three"])
def test_every_prefix_is_remembered_to_the_letter(shown: str, prefix_space: bool) -> None:
    template, tokenizer = template_of(["One", " two", " three"], prefix_space=prefix_space)
    generated = [tokenizer.convert_tokens_to_ids(token) for token in ("One", "Ġtwo", "Ġthree")]
    kept = spoken(template, generated, shown)
    assert tokenizer.decode(kept) == shown
    whole = sum(shown.startswith(said) for said in ("One", "One two", "One two three"))
    assert kept[:whole] == generated[:whole]


def test_a_token_of_which_only_a_part_was_shown_is_not_remembered() -> None:
    template, tokenizer = template_of(["One", " two"])
    generated = [tokenizer.convert_tokens_to_ids(token) for token in ("One", "Ġtwo")]
    assert generated[1] not in spoken(template, generated, "One t")


def test_half_a_character_at_the_end_is_not_remembered() -> None:
    template, tokenizer = template_of([])
    generated = tokenizer("né").input_ids
    assert len(generated) == 3
    assert spoken(template, generated[:2], "n") == generated[:1]
    assert spoken(template, generated, "né") == generated


def test_control_tokens_inside_are_kept_and_at_the_end_are_not() -> None:
    template, tokenizer = template_of([])
    a, b, end = *tokenizer("ab").input_ids, tokenizer.eos_token_id
    assert spoken(template, [a, end, b, end], "ab") == [a, end, b]


def test_a_reply_cut_by_a_stop_string_is_what_the_next_turn_builds_on(
    tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not the stop string, and nothing that came with it; at pages' ends and between them."""
    monkeypatch.setattr("stratakv.runtime.engine.sampling.Sampler.choose", choose_letter)
    with Runtime.load(tiny_llama, dtype="float32", kv=KVConfig(path=tmp_path, host_gb=0.05)) as runtime:
        whole = runtime.chat().send("Hello there.", max_new_tokens=90, ignore_eos=True)
        pairs = [whole.text[at : at + 2] for at in range(2, 88)]
        stops = {pair for at, pair in enumerate(pairs, 2) if whole.text.index(pair) == at}
        assert len(stops) > 3
        for stop in sorted(stops)[:12]:
            chat = runtime.chat()
            reply = chat.send("Hello there.", max_new_tokens=90, ignore_eos=True, stop=[stop])
            assert reply.text == whole.text[: whole.text.index(stop)]
            chat.send("Go on.", max_new_tokens=1, ignore_eos=True)
            memory = runtime.tokenizer.decode(chat._sequence.tokens, skip_special_tokens=False)
            assert f"assistant\n{reply.text}<|im_end|>\n<|im_start|>user\nGo on." in memory


def test_an_empty_stop_string_stops_nothing(tiny_llama: Path, tmp_path: Path) -> None:
    with Runtime.load(tiny_llama, dtype="float32", kv=KVConfig(path=tmp_path, host_gb=0.05)) as runtime:
        replies = [
            runtime.chat().send("Hi", max_new_tokens=9, ignore_eos=True, stop=stop) for stop in (None, "", ["", ""])
        ]
        assert {reply.finish_reason for reply in replies} == {"length"}
        assert len({reply.text for reply in replies}) == 1
