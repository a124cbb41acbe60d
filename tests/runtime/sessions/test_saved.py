"""What can be told of a store's sessions without their model: their pages above all, since the others may go."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from large_pages import overwrite
from made_stores import LAYERS, PAGE_BYTES, chains, fingerprint, made_folder, session_payload

from stratakv.runtime.sessions.saved import (
    Saved,
    StoreFolder,
    chains_of_all,
    describe,
    fingerprint_of,
    is_left_behind,
    store_folders,
)
from stratakv.storage import UnknownPagesError, page_key
from stratakv.storage.disk import record


def damaged(payload: bytes, at: int) -> bytes:
    return payload[:at] + bytes([payload[at] ^ 1]) + payload[at + 1 :]


def test_a_session_is_told_without_its_model(tmp_path: Path) -> None:
    folder = made_folder(tmp_path, "m", {"s": "ab"})
    with StoreFolder(folder) as store:
        size = len(session_payload(chains("ab")))
        assert store.session("s") == Saved("s", 9, size, "bounds", chains("ab"), [], 1_800_000_000.0, None)
        assert store.session("t") is None
        (size,) = {*store.chain_bytes().values()}
        assert size > len(LAYERS) * PAGE_BYTES


def test_only_what_no_session_refers_to_is_removed(tmp_path: Path) -> None:
    folder = made_folder(tmp_path, "m", {"s": "ab", "t": "ac"}, unsaved="de")
    with StoreFolder(folder) as store:
        store.disk.put_state(chains("a")[0], b"needed")
        store.disk.put_state(chains("d")[0], b"not needed")
        assert chains_of_all(store.disk) == {*chains("abc")}
        assert store.remove_unused() == 2 * len(LAYERS) + 1
        assert store.chain_bytes().keys() == {*chains("abc")}
        assert store.disk.get_state(chains("a")[0]) == b"needed"
        assert store.remove_unused() == 0


@pytest.mark.parametrize("is_known", [True, False])
def test_a_damaged_session_keeps_its_pages_if_they_can_be_told(tmp_path: Path, is_known: bool) -> None:
    """They can if there are pages under each of its chains: a chain with a wrong bit would name none."""
    folder = made_folder(tmp_path, "m", {"s": "ab"}, unsaved="c")
    payload = session_payload(chains("ab"))
    at = payload.rindex(chains("b")[0]) if not is_known else payload.index((5).to_bytes(8, "little"))
    with StoreFolder(folder) as store:
        packed = record.pack(record.SESSION, fingerprint(1), b"", payload)
        at += len(packed) - len(payload)
        store.disk._records.write("sessions", [(b"s", damaged(packed, at))])
        if is_known:
            assert chains_of_all(store.disk) == {*chains("ab")}
            assert store.remove_unused() == len(LAYERS)
        else:
            with pytest.raises(UnknownPagesError, match=r"session 's' is damaged; to remove it: .* sessions rm s "):
                store.remove_unused()
            assert store.chain_bytes().keys() == {*chains("abc")}


def test_damage_is_told_with_the_sessions_that_it_costs(tmp_path: Path) -> None:
    folder = made_folder(tmp_path, "m", {"s": "ab", "t": "ac"}, unsaved="d")
    a, c, d = chains("acd")
    changes: list[tuple[bytes, Callable[[bytes], bytes | None]]] = [
        (page_key(0, a), lambda old: damaged(old, len(old) - 1)),
        (page_key(1, c), lambda old: None),
        (page_key(1, d), lambda old: b""),
    ]
    for key, change in changes:
        overwrite(folder, key, change)
    with StoreFolder(folder) as store:
        store.disk.put_session("u", b"no payload")
        said = list(store.damage())
    assert [line.split(":")[0] for line in said] == [
        "session 'u'",
        f"page {page_key(0, a).hex()} (layer 0, of 's', 't')",
        f"page {page_key(1, d).hex()} (layer 1, of no session)",
        f"page {page_key(1, c).hex()} (layer 1, of 't')",
    ]
    assert "checksum" in said[1]
    assert said[3].endswith("the record is missing")


@pytest.mark.parametrize("text", ["", "[1]", "{", "[" * 10_000, "\udcff"], ids=ascii)
def test_a_description_that_cannot_be_read_says_nothing(tmp_path: Path, text: str) -> None:
    path = tmp_path / "config.json"
    path.write_bytes(text.encode(errors="surrogateescape"))
    assert describe(tmp_path).get("model") is None
    assert not is_left_behind(tmp_path)


def test_a_description_has_only_what_can_be_printed(tmp_path: Path) -> None:
    assert describe(tmp_path) == {}
    path = tmp_path / "config.json"
    said = {"model": "m", "format": 2, "dtype": "\x1b[2J", "index": None, "names": ["a", 1, "\n"]}
    path.write_text(json.dumps(said | {"layout": {"page_size": 16, "more": []}}))
    assert describe(tmp_path) == {
        "model": "m", "format": 2, "names": ["a"], "former_names": [], "layout": {"page_size": 16},
    }  # fmt: skip
    path.write_text(f'{{"model": "{"m" * (1 << 20)}"}}')
    assert describe(tmp_path) == {}


def test_a_folder_is_left_behind_once_each_of_its_names_means_another_model(tmp_path: Path) -> None:
    for number, (names, former) in enumerate(((["a"], ["b"]), ([], ["b"]), ([], []))):
        folder = made_folder(tmp_path, "m", {}, number=number + 1, names=names, former_names=former)
        assert is_left_behind(folder) == (number == 1)


def test_a_stores_folders_are_known_by_their_names_and_files(tmp_path: Path) -> None:
    made = [made_folder(tmp_path, name, {}, number=number) for name, number in (("b", 1), ("a_b", 2), ("", 3))]
    (tmp_path / f"c_{fingerprint(4).hex()}").mkdir()
    (tmp_path / "notes").mkdir()
    assert store_folders(tmp_path) == sorted(made)
    assert store_folders(tmp_path / "nowhere") == []
    assert [fingerprint_of(folder) for folder in made] == [fingerprint(number) for number in (1, 2, 3)]
    assert fingerprint_of(tmp_path / "notes") == b""
