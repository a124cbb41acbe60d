"""LMDB's own pages damaged, the file cut or garbled: refused, or pages missing; never a wrong byte or a crash.

LMDB checks none of its pages: it may abort the process or touch memory that is not there. So every trial has its
own process.
"""

from __future__ import annotations

import random
import struct
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from children import Say, child
from faults import num_faults
from kv_pages import FINGERPRINT, SMALL, delete_pages, disk_tier, text
from records import record_offsets

from stratakv.storage import StorageError, StoreUnavailableError, page_key
from stratakv.storage.codecs import make_codec
from stratakv.storage.disk import record

TRIALS = num_faults(default=21, share=2.0)
TEXT = text(SMALL, 400)
KEYS = [page_key(page % 3, TEXT.chains[page]) for page in range(400)]
PSIZE = 4096
META, BRANCH, LEAF = 8, 1, 2


def made(folder: Path) -> bytes:
    """A store of 400 pages, a session and some deletions; its file."""
    rng = random.Random(0)
    disk = disk_tier(folder)
    for start in range(0, 400, 40):
        disk.write_pages([(KEYS[i], packed(i)) for i in range(start, start + 40)])
    disk.put_session("s", rng.randbytes(9000))
    delete_pages(disk, rng.sample(KEYS, 30))
    disk.close()
    return (folder / "data.mdb").read_bytes()


def bytes_of(page: int) -> bytes:
    return random.Random(page).randbytes(SMALL.page_bytes)


def packed(page: int) -> bytes:
    return record.pack(record.PAGE, FINGERPRINT, KEYS[page], bytes_of(page), tokens=TEXT.tokens[page])


def tree_pages(data: bytes) -> list[int]:
    found = []
    for number in range(len(data) // PSIZE):
        own, flags = struct.unpack_from("<Q2xH", data, number * PSIZE)
        if own == number and flags in (META, BRANCH, LEAF):
            found.append(number)
    return found


Damage = Callable[[bytearray, list[int], random.Random], bytearray]


def flip_in_head(data: bytearray, pages: list[int], rng: random.Random) -> bytearray:
    data[rng.choice(pages) * PSIZE + rng.randrange(64)] ^= 1 << rng.randrange(8)
    return data


def flip_anywhere_in_tree(data: bytearray, pages: list[int], rng: random.Random) -> bytearray:
    data[rng.choice(pages) * PSIZE + rng.randrange(PSIZE)] ^= 1 << rng.randrange(8)
    return data


def flip_in_meta(data: bytearray, pages: list[int], rng: random.Random) -> bytearray:
    data[rng.randrange(2) * PSIZE + rng.randrange(160)] ^= 1 << rng.randrange(8)
    return data


def zero_page(data: bytearray, pages: list[int], rng: random.Random) -> bytearray:
    start = rng.choice(pages) * PSIZE
    data[start : start + PSIZE] = bytes(PSIZE)
    return data


def garble_page(data: bytearray, pages: list[int], rng: random.Random) -> bytearray:
    start = rng.choice(pages) * PSIZE
    data[start : start + PSIZE] = rng.randbytes(PSIZE)
    return data


def swap_pages(data: bytearray, pages: list[int], rng: random.Random) -> bytearray:
    one, two = (page * PSIZE for page in rng.sample(pages, 2))
    data[one : one + PSIZE], data[two : two + PSIZE] = data[two : two + PSIZE], data[one : one + PSIZE]
    return data


def truncate(data: bytearray, pages: list[int], rng: random.Random) -> bytearray:
    return data[: rng.randrange(1, len(data))]


DAMAGES: list[Damage] = [
    flip_in_head, flip_anywhere_in_tree, flip_in_meta, zero_page, garble_page, swap_pages, truncate,
]  # fmt: skip


def use(folder: Path, say: Say) -> None:
    """Everything a program does with a store; says how it went."""
    try:
        disk = disk_tier(folder)
    except StoreUnavailableError:
        say("refused")
        return
    out = np.zeros((len(KEYS), SMALL.page_bytes), dtype=np.uint8)
    failures = disk.read_pages(KEYS, TEXT.tokens, out.__getitem__, {0: make_codec("raw", SMALL)})
    wrong = sum(out[i].tobytes() != bytes_of(i) for i in range(len(KEYS)) if i not in failures)
    errors = 0
    for call in (
        lambda: disk.session_names(),
        lambda: disk.get_session("s"),
        lambda: list(disk.damaged_pages()),
        lambda: disk.num_leading(TEXT.chains, lambda chain: [page_key(0, chain)]),
        lambda: disk.write_pages([(KEYS[i], packed(i)) for i in range(0, 400, 7)]),
        lambda: disk.put_session("t", bytes(5000)),
        lambda: disk.sweep(lambda key: key[0] == 1),
        lambda: disk.delete_session("s"),
    ):
        try:
            call()
        except StorageError:
            errors += 1
    disk.close()
    say("wrong" if wrong else "missing" if len(failures) > 30 or errors else "sound")


def trials(data: bytes) -> Iterator[tuple[Damage, bytes]]:
    rng, pages = random.Random(4), tree_pages(data)
    for trial in range(TRIALS):
        damage = DAMAGES[trial % len(DAMAGES)]
        yield damage, bytes(damage(bytearray(data), pages, rng))


@pytest.mark.forks
def test_no_damage_to_the_file_crashes_or_gives_a_wrong_byte(tmp_path: Path, figures: list[str]) -> None:
    data = made(tmp_path / "s")
    outcomes: Counter[str] = Counter()
    for damage, damaged in trials(data):
        (tmp_path / "s" / "data.mdb").write_bytes(damaged)
        with child(lambda say, wait: use(tmp_path / "s", say)) as user:
            outcome = user.hear()
            assert user.join() == 0, (damage.__name__, outcome, user.status)
        assert outcome in ("refused", "missing", "sound"), damage.__name__
        outcomes[outcome] += 1
    assert outcomes["refused"] > TRIALS // 4
    figures.append(
        f"damaged files: {TRIALS} trials, crashes 0, wrong bytes 0, "
        + ", ".join(f"{outcome} {count}" for outcome, count in sorted(outcomes.items()))
    )


@pytest.mark.forks
def test_a_large_file_is_checked_after_its_user_died(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Such a file is not checked whenever it is opened; a process that it brought down leaves its lease."""
    monkeypatch.setattr("stratakv.storage.disk.lmdb_file._CHECKED_BYTES", 0)
    data = bytearray(made(tmp_path / "s"))
    leaf = record_offsets(tmp_path / "s", "pages")[KEYS[200]][0] // PSIZE
    data[leaf * PSIZE : (leaf + 1) * PSIZE] = bytes(PSIZE)
    (tmp_path / "s" / "data.mdb").write_bytes(data)
    disk_tier(tmp_path / "s").close()

    def die(say: Say, wait: Callable[[], None]) -> None:
        disk_tier(tmp_path / "s")
        say("open")
        wait()

    with child(die) as victim:
        assert victim.hear() == "open"
        disk_tier(tmp_path / "s").close()
        victim.kill()
    with pytest.raises(StoreUnavailableError, match=r"data.mdb is damaged: .*\(path=\)"):
        disk_tier(tmp_path / "s")
