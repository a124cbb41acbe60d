"""Damaged records in a real store: pages, states and sessions are read whole or refused by name, within memory."""

from __future__ import annotations

import os
from pathlib import Path

import lmdb
from fuzz import Fuzz
from kv_pages import FINGERPRINT, SMALL, disk_tier, random_pages, text
from mutate_records import mutated_record, mutated_session

from stratakv.runtime import KVConfig, Runtime
from stratakv.storage import page_key, record
from stratakv.storage.codecs import make_codec

COUNT = int(os.environ.get("FUZZ", "40")) // 2
TEXT = "The lighthouse keeper wrote the log every evening, and hid the letter under the lamp. " * 9


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
    with Fuzz(tmp_path, ["record", [str(store), "page", key.hex()]]) as fuzz:
        for number in range(COUNT * 2 // 3):
            what = "state" if number % 4 == 3 else "page"
            database, name, whole = work[what]
            kind, value = mutated_record(number, whole)
            plant(store, database, name, value)
            fuzz.run(f"{number} {what} {kind}", "record", [str(store), what, name.hex()], len(value))
        print(f"\n{fuzz.figures.line('pages and states')}")
        assert fuzz.figures.failures == []
        assert fuzz.figures.outcomes["refused"] > fuzz.figures.outcomes["loaded"]


def test_sessions(tmp_path: Path, tiny_llama: Path) -> None:
    store = tmp_path / "kv"
    kv = KVConfig(path=store, index="bounds", budget=112, local=32, host_gb=0.01, disk_gb=0.05)
    with Runtime.load(tiny_llama, dtype="float32", kv=kv) as runtime:
        chat = runtime.chat()
        chat.read_text(TEXT)
        chat.save("keeper")
    (folder,) = (path for path in store.iterdir() if path.is_dir())
    whole = plant(folder, b"sessions", b"keeper", None)
    arguments = [str(tiny_llama), str(store), "keeper"]
    with Fuzz(tmp_path, ["session", arguments]) as fuzz:
        for number in range(COUNT - COUNT * 2 // 3):
            kind, value = mutated_session(number, whole)
            plant(folder, b"sessions", b"keeper", value)
            fuzz.run(f"{number} session {kind}", "session", arguments, len(value), "'keeper'")
        print(f"\n{fuzz.figures.line('sessions')}")
        assert fuzz.figures.failures == []
