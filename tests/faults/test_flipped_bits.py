"""Single bits flipped in stored records: each is found, named and computed again; the answer stays the same."""

from __future__ import annotations

import logging
import random
import re
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
from conversations import begin, load, pages_of, take_turn
from faults import num_faults
from records import flip_bit, record_offsets

from stratakv.runtime import SessionError
from stratakv.runtime.sessions.saved import StoreFolder, store_folders

FLIPS = num_faults(default=30, share=1.0)
FLIPS_PER_ROUND = 50
SEED = 7


def saved(model: Path, store: Path, codec: str = "zstd") -> tuple[list[int], np.ndarray]:
    """A conversation saved as `s` after its document; its tokens and pages after the question it goes on to."""
    with load(model, store, index="dense", codec=codec) as runtime:
        chat = begin(runtime, SEED)
        take_turn(chat, SEED, 0)
        chat.save("s")
        take_turn(chat, SEED, 1)
        return chat._sequence.tokens.tolist(), pages_of(chat).view(np.float32)


@pytest.mark.parametrize(
    ("kind", "codec"), [("tiny_llama", "zstd"), ("tiny_llama", "raw"), ("tiny_gemma", "zstd"), ("tiny_hybrid", "zstd")]
)
def test_every_flipped_bit_is_found_named_and_computed_again(
    kind: str, codec: str, tmp_path: Path, request: pytest.FixtureRequest, figures: list[str],
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    """Also where the codec has no checksum of its own, and where layers below have no pages to compute it from."""
    rng, started, model = random.Random(1), time.monotonic(), request.getfixturevalue(kind)
    tokens, pages = saved(model, tmp_path / "kv", codec)
    (folder,) = store_folders(tmp_path / "kv")
    with StoreFolder(folder) as opened:
        session = opened.session("s")
        assert session is not None
        chains = set(session.chains)
    places = {key: place for key, place in record_offsets(folder, "pages").items() if key[2:] in chains}
    assert len(places) > FLIPS_PER_ROUND
    named = flipped = 0
    for round_number in range(0, FLIPS, FLIPS_PER_ROUND):
        count = min(FLIPS_PER_ROUND, FLIPS - round_number)
        copy = shutil.copytree(tmp_path / "kv", tmp_path / "copy")
        keys = rng.sample(sorted(places), count)
        for key in keys:
            offset, length = places[key]
            flip_bit(copy / folder.name, offset + rng.randrange(length), rng.randrange(8))
        caplog.clear()
        with caplog.at_level(logging.WARNING), load(model, copy, index="dense") as runtime:
            chat = runtime.chat(session="s")
            take_turn(chat, SEED, 1)
            assert chat._sequence.tokens.tolist() == tokens, "the answer changed"
            np.testing.assert_allclose(pages_of(chat).view(np.float32), pages, atol=1e-4)
            assert runtime.stats()["pages_recomputed"] == count
        found = set(re.findall(r"page ([0-9a-f]{36}) .* was damaged: recomputing it", caplog.text))
        assert found == {key.hex() for key in keys}
        flipped, named = flipped + count, named + len(found)
        with StoreFolder(copy / folder.name) as opened:
            assert list(opened.damage()) == [], "the pages computed again were stored again"
        shutil.rmtree(copy)
    figures.append(
        f"flipped bits: {flipped} in page records ({kind}, {codec}), {named} found and named, "
        f"{flipped - named} missed, every answer unchanged, {time.monotonic() - started:.0f} s"
    )


def test_a_flipped_bit_in_a_session_is_refused_by_name(tiny_llama: Path, tmp_path: Path) -> None:
    saved(tiny_llama, tmp_path / "kv")
    (folder,) = store_folders(tmp_path / "kv")
    offset, length = record_offsets(folder, "sessions")[b"s"]
    rng = random.Random(2)
    for _ in range(20):
        place, bit = offset + rng.randrange(length), rng.randrange(8)
        flip_bit(folder, place, bit)
        with StoreFolder(folder) as opened:
            assert len(list(opened.damage())) == 1
        flip_bit(folder, place, bit)
    flip_bit(folder, offset + length // 2, 0)
    with load(tiny_llama, tmp_path / "kv") as runtime, pytest.raises(SessionError, match="session 's' is damaged"):
        runtime.chat(session="s")


@pytest.mark.parametrize("kind", ["tiny_gemma", "tiny_hybrid"])
def test_a_flipped_bit_in_a_state_costs_what_is_behind_the_one_before(
    kind: str, tmp_path: Path, request: pytest.FixtureRequest, caplog: pytest.LogCaptureFixture
) -> None:
    """Of sliding and of recurrent layers: the prefix is reused up to the newest state that is sound."""
    model, text = request.getfixturevalue(kind), "The keeper hid the letter under the lamp. " * 12

    def read() -> tuple[int, list[bytes]]:
        with load(model, tmp_path / "kv") as runtime:
            chat = runtime.chat()
            return chat.read_text(text).cached, list(chat._sequence.chains)

    def places() -> dict[int, tuple[int, int]]:
        """Of states in the file, by the tokens before them."""
        found = record_offsets(folder, "states")
        return {16 * number: found[chain] for number, chain in enumerate(chains, 1) if chain in found}

    cached, chains = read()
    assert cached == 0
    (folder,) = store_folders(tmp_path / "kv")
    *_, before, newest = sorted(places())
    assert read()[0] == newest > 400
    rng = random.Random(3)
    for _ in range(5):
        offset, length = places()[newest]
        place, bit = offset + rng.randrange(length), rng.randrange(8)
        flip_bit(folder, place, bit)
        with StoreFolder(folder) as opened:
            assert [line[:5] for line in opened.damage()] == ["state"]
        flip_bit(folder, place, bit)
    flip_bit(folder, offset + length // 2, 5)
    assert read()[0] == before
    assert "is damaged (checksum" in caplog.text
    for offset, length in places().values():
        flip_bit(folder, offset + length - 1, 5)
    assert read()[0] == 0
    assert read()[0] > 400
