"""The front door: what it takes, what it refuses before any work, and how it is closed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from stratakv.runtime import (
    CapacityError,
    ClosedError,
    ConversationError,
    DoesNotFitError,
    KVConfig,
    Runtime,
    StratakvError,
    WrongTypeError,
)


@pytest.fixture(scope="module")
def small(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runtime]:
    """In host memory that holds less than the model's window."""
    kv = KVConfig(path=tmp_path_factory.mktemp("kv"), host_gb=0.0006, disk_gb=0, budget=112, local=32)
    with Runtime.load(tiny_llama, dtype="float32", kv=kv) as loaded:
        yield loaded
        loaded.store.check_integrity()


@pytest.fixture
def second(small: Runtime, tiny_llama: Path, tmp_path: Path) -> Iterator[Runtime]:
    """Over the same model, with a store of its own."""
    kv = KVConfig(path=tmp_path, host_gb=0.05, disk_gb=0.05)
    with Runtime.over(small.model, tiny_llama, kv, small.profiles) as runtime:
        yield runtime


def test_prompts_are_texts(small: Runtime) -> None:
    one, listed = (small.generate(prompts, max_new_tokens=3) for prompts in ("One text.", ["One text."]))
    assert one[0].tokens == listed[0].tokens
    assert small.generate([]) == []
    assert len(small.generate(iter(["a", "b"]), max_new_tokens=1)) == 2
    for wrong in (["a", 5], [None], [b"a"]):
        with pytest.raises(WrongTypeError, match=r"prompt \d is a text, not"):
            small.generate(wrong, max_new_tokens=1)


def test_as_many_tokens_as_there_is_room_for(small: Runtime) -> None:
    (reply,) = small.generate(["y" * 400], max_new_tokens=-1, ignore_eos=True)
    assert reply.finish_reason == "length"
    assert len(reply.tokens) == small.plan.capacity_tokens() - 400
    chat = small.chat()
    assert chat.send("y" * 400, max_new_tokens=-1, ignore_eos=True).finish_reason == "length"
    chat.close()


def test_generation_stops_where_the_tiers_end(small: Runtime) -> None:
    """Without a disk tier a reply is cut at what host memory holds instead of failing in the middle."""
    room = small.plan.capacity_tokens()
    chat = small.chat()
    reply = chat.send("y" * (room - 150), max_new_tokens=2000, ignore_eos=True)
    assert reply.finish_reason == "length"
    assert chat.num_tokens <= room
    small.store.check_integrity()
    chat.close()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens is at least 1, or -1 .*, not 0"),
        ({"temperature": 0.0}, "temperature is above 0"),
        ({"top_p": 1.5}, r"top_p is in \(0, 1\], not 1.5"),
        ({"temprature": 0.5}, "unknown generation argument"),
    ],
)
def test_generation_arguments_are_checked(small: Runtime, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        small.generate(["a"], **arguments)


def test_a_system_prompt_belongs_to_a_conversation_from_its_begin(small: Runtime) -> None:
    with pytest.raises(ValueError, match="a resumed session has its system prompt already; give session or system"):
        small.chat(system="Be brief.", session="mine")


def test_an_empty_prompt_or_one_too_long_is_named_by_its_number(small: Runtime) -> None:
    with pytest.raises(ValueError, match="prompt 1 is empty"):
        small.generate(["a", ""])
    with pytest.raises(DoesNotFitError, match="prompt 2 does not fit: "):
        small.generate(["a", "b", "y" * 5000])
    with pytest.raises(DoesNotFitError, match="the batch does not fit: "):
        small.generate(["y" * (small.plan.capacity_tokens() // 2)] * 3, max_new_tokens=1)


def test_errors_have_one_root(second: Runtime) -> None:
    chat = second.chat()
    second.close()
    with pytest.raises(StratakvError):
        chat.send("hello")
    assert issubclass(CapacityError, StratakvError)


def test_closing_twice_or_by_leaving_a_block_is_closing(small: Runtime, second: Runtime) -> None:
    """The model is another runtime's as well, which goes on."""
    with second as same:
        assert same is second
        second.close()
    with pytest.raises(ClosedError):
        second.store.flush()
    assert small.generate("One text.", max_new_tokens=1)


def test_it_is_not_closed_from_inside_its_own_work(small: Runtime) -> None:
    chat = small.chat()
    with pytest.raises(ConversationError):
        chat.read_text("words", on_progress=lambda _: small.close())
    assert chat.num_tokens == 0
    assert chat.read_text("words").tokens


def test_another_reading_finds_its_tokens_in_another_way_over_the_same_store(small: Runtime) -> None:
    wider = small.reading(KVConfig(index="dense", budget=512))
    assert (wider.index_name, wider.store) == ("dense", small.store)
    like = small.reading(KVConfig(budget=256, local=32), like=small.engine)
    assert list(like.indexes.values()) == list(small.engine.indexes.values())
