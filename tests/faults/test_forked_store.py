"""A store in a forked child: it is the parent's, leases included, and may be opened anew."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from children import Say, child
from conversations import begin, load, state_of, take_turn
from kv_pages import FINGERPRINT, LARGE, disk_tier, text

from stratakv.storage import DiskTier, ForkedError, page_key
from stratakv.storage.disk import record

Wait = Callable[[], None]


def put_pages(disk: DiskTier, count: int) -> None:
    words = text(LARGE, count)
    keys = [page_key(0, chain) for chain in words.chains[:count]]
    page = bytes(LARGE.page_bytes)
    disk.write_pages(
        [
            (key, record.pack(record.PAGE, FINGERPRINT, key, page, tokens=tokens))
            for key, tokens in zip(keys, words.tokens[:count], strict=True)
        ]
    )


@pytest.mark.forks
def test_a_fork_may_not_use_the_store_but_may_open_it_anew(tiny_llama: Path, tmp_path: Path) -> None:
    with load(tiny_llama, tmp_path) as runtime:
        chat = begin(runtime, 1)
        take_turn(chat, 1, 0)
        chat.save("one")
        expected = state_of(chat)

        def use_it(say: Say, wait: Wait) -> None:
            with pytest.raises(
                ForkedError, match=r"used in its child \d+: neither threads nor the store survive a fork"
            ):
                take_turn(chat, 1, 1)
            with pytest.raises(ForkedError):
                begin(runtime, 2).read_text("Another text. " * 20)
            with pytest.raises(ForkedError):
                chat.save("two")
            with pytest.raises(ForkedError):
                runtime.sessions()
            runtime.close()
            with load(tiny_llama, tmp_path) as own:
                say(state_of(own.chat(session="one")) == expected)

        with child(use_it) as other:
            assert other.hear() is True
            assert other.join() == 0
        take_turn(chat, 1, 1)
        chat.save("three")
        assert runtime.sessions() == ["one", "three"]
        runtime.store.check_integrity()


@pytest.mark.forks
def test_a_forked_child_does_not_keep_its_parents_lease(tmp_path: Path) -> None:
    def open_and_fork(say: Say, wait: Wait) -> None:
        disk = disk_tier(tmp_path / "s")
        put_pages(disk, 4)
        if os.fork() == 0:
            say(os.getpid())
            wait()
            os._exit(0)
        wait()

    with child(open_and_fork) as parent:
        assert parent.hear() > 0
        disk = disk_tier(tmp_path / "s")
        assert disk.sweep(lambda key: False) == 0
        parent.kill()
        assert disk.sweep(lambda key: False) == 4
        disk.close()
        parent.go()
