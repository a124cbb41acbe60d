"""Damaged records in a real store: pages, states and sessions are read whole or refused by name, within memory."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import lmdb
import pytest
from fuzz import Fuzz
from kv_pages import FINGERPRINT, SMALL, disk_tier, random_pages, text
from mutate_records import mutated_bytes, mutated_payload, mutated_record
from tiny_models import save_tiny_model

from stratakv.runtime import KVConfig, Runtime
from stratakv.runtime.sessions.saved import StoreFolder
from stratakv.storage import page_key
from stratakv.storage.codecs import make_codec
from stratakv.storage.disk import record

COUNT = int(os.environ.get("FUZZ", "40")) // 2
TEXT = "The lighthouse keeper wrote the log every evening, and hid the letter under the lamp. " * 9
QUESTION = "Who wrote the log?"


def plant(folder: Path, database: bytes, key: bytes, value: bytes | None) -> bytes:
    """Put a record's bytes where the store keeps them (None: only look); returns what was there."""
    with lmdb.open(str(folder), max_dbs=16, map_size=64 << 20) as environment:
        found = environment.open_db(database)
        with environment.begin(db=found, write=True) as transaction:
            before = bytes(transaction.get(key))
            if value is not None:
                transaction.put(key, value)
    return before


def test_pages_and_states(tmp_path: Path) -> None:
    store, written = tmp_path / "kv", text(SMALL, 1)
    chain, raw = written.chains[0], random_pages(SMALL, 1)[0].numpy()
    key = page_key(0, chain)
    codec = make_codec("zstd", SMALL)
    disk = disk_tier(store)
    page = record.pack(
        record.PAGE, FINGERPRINT, key, codec.encode(raw), codec=codec.code, raw_bytes=raw.nbytes,
        tokens=written.tokens[0],
    )  # fmt: skip
    disk.write_pages([(key, page)])
    disk.put_state(chain, raw.tobytes())
    disk.close()
    state = plant(store, b"states", chain, None)
    work = {"page": (b"pages", key, page), "state": (b"states", chain, state)}
    shutil.copytree(store, whole(store))
    with Fuzz(tmp_path, ["record", [str(whole(store)), "page", key.hex()]]) as fuzz:
        for number in range(COUNT - 4 * (COUNT // 5)):
            what = "state" if number % 4 == 3 else "page"
            database, name, record_bytes = work[what]
            kind, value = mutated_record(number, record_bytes)
            plant(store, database, name, value)
            fuzz.run(f"{number} {what} {kind}", "record", [str(store), what, name.hex()], len(value))
        print(f"\n{fuzz.figures.line('pages and states')}")
        assert fuzz.figures.failures == []
        assert fuzz.figures.outcomes["refused"] > fuzz.figures.outcomes["loaded"]


def put(folder: Path, chains: list[bytes], payload: bytes) -> None:
    """Through the store, so that the record's checksum is right: a session, or the states of `chains`."""
    with StoreFolder(folder) as opened:
        if not chains:
            opened.disk.put_session("keeper", payload)
        for chain in chains:
            opened.disk.put_state(chain, payload)


def prepared(model: Path, store: Path, index: str) -> tuple[Path, list[bytes], list[list[int]]]:
    """A store with a session and a whole copy of it beside; the chains that have states, and what may be answered next:
    without those, and with them."""
    kv = KVConfig(path=store, index=index, budget=112, local=32, host_gb=0.01, disk_gb=0.05)

    def answer() -> list[int]:
        with Runtime.load(model, dtype="float32", kv=kv) as runtime:
            chat = runtime.chat()
            chat.read_text(TEXT)
            return chat.send(QUESTION, max_new_tokens=4, ignore_eos=True).tokens

    with Runtime.load(model, dtype="float32", kv=kv) as runtime:
        chat = runtime.chat()
        chat.read_text(TEXT)
        chat.save("keeper")
    (folder,) = (path for path in store.iterdir() if path.is_dir())
    shutil.copytree(store, whole(store))
    with_states = answer()
    with StoreFolder(folder) as opened:
        chains = list(opened.disk._records.keys("states"))
        opened.disk._records.delete("states", chains)
    return folder, chains, [answer(), with_states]


def whole(store: Path) -> Path:
    """Where the copy is that the child warms up with."""
    return store.with_name("whole")


@pytest.mark.parametrize(("family", "index"), [("llama", "spectral"), ("gemma3_text", "bounds")])
def test_sessions_and_states(tmp_path: Path, family: str, index: str) -> None:
    """A session is refused by name. A state that cannot be used is no error: what it would have saved is computed."""
    model, store = save_tiny_model(tmp_path / "model", family), tmp_path / "kv"
    folder, chains, answers = prepared(model, store, index)
    with StoreFolder(whole(store) / folder.name) as opened:
        session, state = opened.disk.get_session("keeper"), opened.disk.get_state(chains[-1])
    assert session is not None
    assert state is not None
    with Fuzz(tmp_path, ["session", [str(model), str(whole(store)), index, "keeper"]]) as fuzz:
        for number in range(COUNT // 5):
            kind, size = damage(folder, b"sessions", [], session, number)
            fuzz.run(f"{number} session {kind}", "session", [str(model), str(store), index, "keeper"], size, "'keeper'")
        refused = fuzz.figures.outcomes["refused"]
        assert refused
        for number in range(COUNT // 5):
            kind, size = damage(folder, b"states", chains, state, number)
            allowed = answers if number % 4 == 3 else None  # what only the numbers tell is not told
            arguments = [str(model), str(store), index, TEXT, QUESTION, allowed]
            fuzz.run(f"{number} state {kind}", "prompt", arguments, size)
        print(f"\n{fuzz.figures.line(f'sessions and states, {family}, {index}')}")
        assert fuzz.figures.failures == []
        assert fuzz.figures.outcomes["refused"] == refused


def damage(folder: Path, database: bytes, chains: list[bytes], payload: bytes, number: int) -> tuple[str, int]:
    """Kind and size of damage `number`: every fourth to a record's bytes, others to what its checksum agrees with."""
    if number % 4 < 3:
        kind, value = mutated_payload(number, payload)
        put(folder, chains, value)
        return kind, len(value)
    put(folder, chains, payload)
    for key in chains or [b"keeper"]:
        kind, value = mutated_bytes(number // 4, plant(folder, database, key, None))
        plant(folder, database, key, value)
    return kind, len(value)
