"""A reply that says the same over and over ends, says so, and nothing else is taken for one."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import chain, repeat
from pathlib import Path
from typing import Any

import pytest
from places import ABBEY

from stratakv.runtime import GenerationConfig, KVConfig, Runtime
from stratakv.runtime.engine.repetition import Repetition


def ends_at(tokens: Iterable[int], copies: int = 3) -> int | None:
    """After how many tokens a loop is seen; None if there is none."""
    watch = Repetition(copies)
    return next((number for number, token in enumerate(tokens, 1) if watch.push(token)), None)


def words(text: str) -> list[int]:
    """Every byte a token: the densest text a tokenizer makes, so the hardest to tell from a loop."""
    return list(text.encode())


LEAD = list(range(1000, 1017))


@pytest.mark.parametrize(("unit", "expected"), [(1, 48), (2, 48), (5, 48), (16, 48), (17, 51), (40, 120), (256, 768)])
def test_a_loop_ends_with_its_third_copy_or_48_tokens(unit: int, expected: int) -> None:
    loop = [*LEAD, *list(range(unit)) * 100]
    assert ends_at(loop) == len(LEAD) + expected


def test_a_sentence_over_and_over_is_a_loop() -> None:
    sentence = "He is also a member of the Court of Ashton. "
    reply = words("He is named Mr. Tilney. ") + words(sentence) * 9
    found = ends_at(reply)
    assert found is not None
    assert bytes(reply[:found]).decode().count("Court of Ashton") == 3


def test_a_loop_of_two_sentences_in_turn_is_a_loop() -> None:
    assert ends_at(words("They are all of the same sex. They are all of the same age. ") * 4)


def test_a_loop_after_a_long_reply_is_found() -> None:
    assert ends_at([*range(5000), *[7, 8, 9] * 30]) == 5048


@pytest.mark.parametrize("copies", [2, 5])
def test_more_or_fewer_copies(copies: int) -> None:
    assert ends_at([*LEAD, *list(range(30)) * 10], copies) == len(LEAD) + 30 * copies


def test_none_is_none() -> None:
    assert ends_at(repeat(5, 5000), copies=0) is None


REFRAIN = "Row, row, row your boat,\nGently down the stream.\n"
NO_LOOPS = {
    "a growing count": ", ".join(map(str, range(1, 400))),
    "a numbered list": "".join(f"{n}. The same words in every line.\n" for n in range(1, 60)),
    "a count to five, again and again longer": "".join(" ".join(map(str, range(1, n))) + "\n" for n in range(3, 40)),
    "a refrain twice in a row": REFRAIN * 2 + "Merrily, merrily, merrily, merrily,\nLife is but a dream.\n",
    "a refrain after each verse": "".join(f"Verse {'xyzuvw'[n]} of its own.\n{REFRAIN}" for n in range(6)),
    "laughter": "Ha ha ha ha ha ha! Good one. Ha ha!",
    "closing braces": "void f() {\n  if (a) {\n    if (b) {\n      g();\n    }\n  }\n}\n",
    "a line of code three times": "x = [\n" + "    None,\n" * 3 + "]\n",
    "a table": "| a | b |\n|---|---|\n" + "".join(f"| {n} | {n * n} |\n" for n in range(40)),
    "a rule": "Title\n" + "=" * 40 + "\nText\n" + "-" * 40 + "\n",
    "nothing": "",
}


@pytest.mark.parametrize("name", NO_LOOPS)
def test_what_is_no_loop(name: str) -> None:
    assert ends_at(words(NO_LOOPS[name])) is None


def test_no_loop_in_real_prose() -> None:
    assert ends_at(words(ABBEY.read_text())) is None


# In a conversation


@pytest.fixture(scope="module")
def runtime(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runtime]:
    kv = KVConfig(path=tmp_path_factory.mktemp("kv"), index="bounds", budget=112, local=32)
    with Runtime.load(tiny_llama, dtype="float32", kv=kv) as loaded:
        yield loaded
        loaded.store.check_integrity()


@pytest.fixture
def looping(runtime: Runtime, monkeypatch: pytest.MonkeyPatch) -> Runtime:
    """The model says "Yes." and then one sentence for ever."""
    begin, sentence = (runtime.tokenizer(text).input_ids for text in ("Yes. ", "It is a fine day. "))

    class Scripted:
        def __init__(self, *_: Any) -> None:
            self._script = chain(begin, chain.from_iterable(repeat(sentence)))

        def choose(self, *_: Any) -> int:
            return next(self._script)

    monkeypatch.setattr("stratakv.runtime.engine.generate.Sampler", Scripted)
    return runtime


def test_a_chat_ends_a_loop_and_says_so(looping: Runtime) -> None:
    chat = looping.chat()
    pieces = list(chat.stream("How is the weather?", max_new_tokens=200))
    reply = chat.last
    assert reply.finish_reason == "repeats"
    assert reply.text == "".join(pieces) == chat.messages[-1]["content"]
    assert reply.text.startswith("Yes. It is a fine day. ")
    assert reply.text.count("It is a fine day") >= 3
    assert len(reply.tokens) < 80
    assert chat.send("And tomorrow?", max_new_tokens=5).finish_reason == "length"


def test_asked_to_a_chat_lets_it_go_on(looping: Runtime) -> None:
    chat = looping.chat()
    assert chat.send("How is the weather?", max_new_tokens=120, max_repeats=0).finish_reason == "length"
    assert chat.send("And tomorrow?", max_new_tokens=120, ignore_eos=True).finish_reason == "length"
    chat.generation = GenerationConfig(max_repeats=0)
    assert chat.send("And then?", max_new_tokens=120).finish_reason == "length"


def test_a_batch_does_not_watch_unless_asked(looping: Runtime) -> None:
    (plain,) = looping.generate(["Once upon"], max_new_tokens=120)
    (watched,) = looping.generate(["Once upon"], max_new_tokens=120, max_repeats=3)
    assert (plain.finish_reason, watched.finish_reason) == ("length", "repeats")
    assert watched.tokens == plain.tokens[: len(watched.tokens)]


@pytest.mark.parametrize("value", [1, -1, 1001])
def test_a_number_of_copies_that_means_nothing_is_refused(value: int) -> None:
    with pytest.raises(ValueError, match="max_repeats is from 2 to 1000, or 0 for never"):
        GenerationConfig(max_repeats=value)


@pytest.mark.model
def test_the_default_model_ends_its_reply_by_itself(tmp_path: Path) -> None:
    """Asked about two notes in the novel, of which it reads the page around each."""
    lines = ABBEY.read_text().splitlines(keepends=True)
    notes = [number for number, line in enumerate(lines) if line.startswith("[Note by")]
    with Runtime.load("smollm2", kv=KVConfig(path=tmp_path, host_gb=0.5)) as runtime:
        chat = runtime.chat()
        chat.read_text("".join(line for note in notes for line in lines[note - 12 : note + 8]))
        for question, answer in (
            ("What is the shelf mark of this copy?", "4827"),
            ("Where did the reader read this chapter aloud?", "garden"),
        ):
            reply = chat.fork().send(question, max_new_tokens=64, max_repeats=0)
            assert (reply.finish_reason, answer in reply.text) == ("eos", True), reply.text
