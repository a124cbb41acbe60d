"""What does not fit is refused with the sum, before any work; what fits exactly is let in."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from stratakv.runtime import DoesNotFitError, KVConfig, Runtime


@pytest.fixture(scope="module")
def small(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runtime]:
    """In host memory that holds less than the model's window."""
    kv = KVConfig(path=tmp_path_factory.mktemp("kv"), host_gb=0.0008, disk_gb=0)
    with Runtime.load(tiny_llama, dtype="float32", kv=kv) as loaded:
        yield loaded


def test_a_prompt_beyond_the_window_is_refused_with_the_sum(small: Runtime) -> None:
    chat = small.chat()
    with pytest.raises(DoesNotFitError, match=r"0 tokens in context \+ \d+ new = \d+, but .* was trained for 4096"):
        chat.read_text("x" * 5000)
    assert chat.num_tokens == 0


def test_a_prompt_beyond_the_tiers_is_refused_with_the_sum(small: Runtime) -> None:
    message = r"\d+ tokens x 384 bytes = .* GB, but there is host .* raise host_gb"
    with pytest.raises(DoesNotFitError, match=message):
        small.chat().read_text("y" * 3000)


def test_the_window_is_the_most_that_held_and_new_tokens_may_be(small: Runtime) -> None:
    window = small.model.max_positions
    small.check_window(0, window, "a text")
    small.check_window(window - 1, 1, "a text")
    with pytest.raises(
        DoesNotFitError, match=rf"^a text does not fit: 96 tokens in context \+ 4001 new = {window + 1}, "
    ):
        small.check_window(96, 4001, "a text")


def test_room_is_what_the_tiers_hold_beside_what_is_there(small: Runtime) -> None:
    room = small.room_tokens(0)
    assert (room, small.room_tokens(100)) == (small.plan.host_tokens(), room - 100)
    assert room < small.model.max_positions
    small.check_fits(0, room, "a text")
    small.check_fits(100, room - 100, "a text")
    for held in (0, 100):
        with pytest.raises(DoesNotFitError, match=f"^a text does not fit: {room + 1} tokens x "):
            small.check_fits(held, room + 1 - held, "a text")


def test_what_is_held_need_not_fit_beside_a_full_disk(small: Runtime, tiny_llama: Path, tmp_path: Path) -> None:
    """It is somewhere already: only what is new has to stay in memory, where the disk has no room for it."""
    kv = KVConfig(path=tmp_path, host_gb=0.0008, disk_gb=0.0012)
    with Runtime.over(small.model, tiny_llama, kv, small.profiles) as full:
        held, in_memory = 2500, full.plan.host_tokens()
        assert full.room_tokens(0) > held > full.room_tokens(0) - in_memory
        assert full.room_tokens(held) == in_memory
        full.check_fits(held, in_memory, "a text")
        with pytest.raises(DoesNotFitError, match=f"^a text does not fit: {held + in_memory + 1} tokens x .* is disk "):
            full.check_fits(held, in_memory + 1, "a text")
