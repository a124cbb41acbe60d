"""A batch that cannot fit is refused before any work, with the sum; one that is taken is never given up on the way."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from places import RECALL

from stratakv.runtime import DoesNotFitError, KVConfig, Runtime
from stratakv.runtime.engine.batch import num_spare


def load(path: Path, disk_gb: float) -> Runtime:
    """36 pages of memory, two layers."""
    return Runtime.load(RECALL, device="cpu", kv=KVConfig(path=path, host_gb=0.00199, disk_gb=disk_gb))


@pytest.fixture(params=[0, 0.01], ids=["memory", "disk"])
def runtime(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Runtime]:
    with load(tmp_path, request.param) as runtime:
        yield runtime


def prompts(count: int) -> list[str]:
    return [f"k{number} v{number} k{3 * number % 128} v{5 * number % 99} f3 ? k{number}" for number in range(count)]


def most(runtime: Runtime, new: int) -> int:
    """The largest batch that is not refused; finds out that none is given up on the way."""
    for count in range(30, 0, -1):
        before = runtime.engine.num_steps
        try:
            replies = runtime.generate(prompts(count), max_new_tokens=new, ignore_eos=True)
        except DoesNotFitError:
            assert runtime.engine.num_steps == before
            assert runtime.store.host.num_pages == runtime.store.host.num_filling == 0
            continue
        assert {len(reply.tokens) for reply in replies} == {new}
        runtime.store.check_integrity()
        return count
    return 0


def test_each_prompt_needs_an_open_page_in_each_layer(runtime: Runtime) -> None:
    assert runtime.store.host.num_slots == 36
    assert most(runtime, 3) == 18
    with pytest.raises(DoesNotFitError, match="19 prompts x 2 layers = 38 open pages, but the host tier has 36"):
        runtime.generate(prompts(19), max_new_tokens=3)


def test_without_a_disk_whole_pages_of_memory_count(tmp_path: Path) -> None:
    with load(tmp_path, 0) as runtime:
        assert most(runtime, 30) == 6  # three pages in two layers for each


def test_what_a_conversation_holds_counts(tmp_path: Path) -> None:
    with load(tmp_path, 0) as runtime:
        chat = runtime.chat()
        chat.read_text(" ".join(f"k{number}" for number in range(100)))
        held = runtime.store.host.num_slots - runtime.store.host.num_free
        assert num_spare(runtime.store, runtime.store.host) == 36 - held < 36
        fits = (36 - held) // 2
        with pytest.raises(DoesNotFitError, match=f"{fits + 1} prompts x 2 layers .* {36 - held} to spare of its 36"):
            runtime.generate(prompts(fits + 1), max_new_tokens=1)
        assert len(runtime.generate(prompts(fits), max_new_tokens=1)) == fits
        with pytest.raises(DoesNotFitError, match="beside what other conversations hold"):
            runtime.generate(prompts(2), max_new_tokens=(36 - held) * 4)
        del chat
        assert len(runtime.generate(prompts(18), max_new_tokens=1)) == 18


def test_as_many_as_fit_fit(tmp_path: Path) -> None:
    with load(tmp_path, 0) as runtime:
        replies = runtime.generate(prompts(4), max_new_tokens=-1, ignore_eos=True)
        assert {len(reply.tokens) for reply in replies} == {
            4 * 16 - 7 + 1
        }  # four pages each; the last token is not stored


def test_no_reply_is_counted_beyond_the_window(runtime: Runtime) -> None:
    with pytest.raises(DoesNotFitError, match=r"the batch does not fit: \d+ tokens") as caught:
        runtime.generate(prompts(3), max_new_tokens=10**9)
    assert str(3 * 8192)[:3] in str(caught.value)
