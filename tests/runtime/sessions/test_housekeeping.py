"""Sessions are found by any of their folders' names, and what goes is what nobody needs, the oldest first."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from made_stores import LAYERS, PAGE_BYTES, chains, fingerprint, made_folder, session_payload

from stratakv.runtime import SessionError
from stratakv.runtime.sessions.housekeeping import chosen_folders, collect, find_session, sessions_in
from stratakv.runtime.sessions.saved import StoreFolder
from stratakv.storage import DiskTier, StoreUnavailableError

pytestmark = pytest.mark.usefixtures("own_cache")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two models: sessions a and b of the first, a of the second, and pages that none of them has."""
    root = tmp_path_factory.mktemp("housekeeping") / "kv"
    return [
        made_folder(root, "one", {"a": "abc", "b": "ad"}, unsaved="xy", model="/models/one", dtype="torch.float32"),
        made_folder(root, "two", {"a": "e"}, number=2, unsaved="z", model="owner/two", dtype="torch.bfloat16"),
    ]


@pytest.fixture
def folders(made: list[Path], store: Path) -> list[Path]:
    """A copy of them, to change."""
    return [shutil.copytree(folder, store / folder.name) for folder in made]


def names_in(folder: Path) -> list[str]:
    return [found.name for found in sessions_in(folder)]


@pytest.mark.parametrize(
    ("model", "dtype", "folder", "expected"),
    [
        (None, None, None, [0, 1]),
        ("/models/one", None, None, [0]),
        ("/models/../models/one", None, None, [0]),
        ("owner/two", None, None, [1]),
        ("owner/two", "float32", None, []),
        (None, "bfloat16", None, [1]),
        (None, None, "o", [0]),
        ("owner/two", None, "one", []),
        ("owner/unheard-of", None, None, []),
    ],
)
def test_folders_are_chosen_by_model_dtype_and_name(
    made: list[Path], model: str | None, dtype: str | None, folder: str | None, expected: list[int]
) -> None:
    assert chosen_folders(made[0].parent, model, dtype, folder) == [made[number] for number in expected]


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        ({"folder": "x"}, "no folder of the store .* begins with 'x'; it has /models/one \\(one_.*, owner/two \\(two_"),
        ({"model": "three"}, "no model 'three' is on this machine or in the store .*; it has /models/one"),
        ({"dtype": "int7"}, "dtype is .*, not 'int7'"),
    ],
)
def test_to_ask_for_what_is_not_there_is_an_error(
    made: list[Path], store: Path, asked: dict[str, Any], says: str
) -> None:
    with pytest.raises(ValueError, match=says):
        chosen_folders(made[0].parent, **({"model": None, "dtype": None, "folder": None} | asked))
    with pytest.raises(ValueError, match="it has nothing"):
        chosen_folders(store, None, None, "x")


def test_a_session_has_the_bytes_of_its_record_and_of_its_pages(made: list[Path]) -> None:
    found = {found.name: found for found in sessions_in(made[0])}
    with StoreFolder(made[0]) as opened:
        (page,) = {*opened.chain_bytes().values()}
    assert page > len(LAYERS) * PAGE_BYTES
    assert {name: one.num_bytes for name, one in found.items()} == {
        "a": len(session_payload(chains("abc"))) + 3 * page,
        "b": len(session_payload(chains("ad"))) + 2 * page,
    }


def test_states_under_its_pages_are_counted_apart(folders: list[Path]) -> None:
    with StoreFolder(folders[0]) as opened:
        for chain in (*chains("bx"),):
            opened.disk.put_state(chain, bytes(100_000))
        assert opened.disk.num_states == 2
    found = {found.name: found.state_bytes for found in sessions_in(folders[0])}
    assert found["b"] == 0
    assert 100_000 < found["a"] < 101_000


def test_a_damaged_session_is_listed_with_its_error(folders: list[Path]) -> None:
    with StoreFolder(folders[0]) as opened:
        opened.disk.put_session("a", b"damaged")
    damaged, sound = sessions_in(folders[0])
    assert (damaged.name, damaged.saved, damaged.num_bytes) == ("a", None, 0)
    assert str(damaged.error).startswith("header")
    assert (sound.name, sound.error) == ("b", None)


def test_a_session_is_found_if_there_is_one(made: list[Path]) -> None:
    found = find_session(made, "b", made)
    assert (found.folder, found.name) == (made[0], "b")
    with pytest.raises(SessionError, match=f"^2 sessions are called 'a'; choose one with --in: {made[0].name}, two_"):
        find_session(made, "a", made)
    elsewhere = rf"^no session 'b'; saved: a; there is one elsewhere: --in {made[0].name} \(/models/one, float32\)$"
    with pytest.raises(SessionError, match=elsewhere):
        find_session(made[1:], "b", made)
    with pytest.raises(SessionError, match=r"^no session 'c'; saved: a, b$"):
        find_session(made, "c", made)


def test_a_session_that_may_be_in_a_damaged_folder_is_not_said_to_be_nowhere(folders: list[Path]) -> None:
    (folders[0] / "data.mdb").write_bytes(b"damaged")
    assert find_session(folders, "a", folders).folder == folders[1]
    with pytest.raises(StoreUnavailableError, match=str(folders[0])):
        find_session(folders, "b", folders)


def size_of(folders: list[Path]) -> int:
    return sum((folder / "data.mdb").stat().st_size for folder in folders)


def test_what_no_session_needs_goes_and_its_room_is_given_back(folders: list[Path]) -> None:
    before = size_of(folders)
    done = collect(folders, None)
    assert done.num_records == 3 * len(LAYERS)
    assert (done.removed_sessions, done.notes) == ([], [])
    assert (done.left_bytes, done.freed_bytes) == (size_of(folders), before - size_of(folders))
    assert done.freed_bytes > 3 * len(LAYERS) * PAGE_BYTES
    assert [names_in(folder) for folder in folders] == [["a", "b"], ["a"]]
    assert collect(folders, None).num_records == 0


def test_to_a_size_sessions_go_only_when_nothing_else_is_left_and_the_oldest_first(folders: list[Path]) -> None:
    with StoreFolder(folders[0]) as opened:
        opened.disk.put_session("a", session_payload(chains("abc"), saved_at=1.5))
        opened.disk.session_used("a")
        opened.disk.put_session("b", session_payload(chains("ad"), saved_at=2.0))
    with StoreFolder(folders[1]) as opened:
        opened.disk.put_session("a", session_payload(chains("e"), saved_at=1.0))
    needed = collect(folders, None).left_bytes
    assert collect(folders, needed).removed_sessions == []
    first = collect(folders, needed - 1)
    assert first.removed_sessions == [f"a ({folders[1].name})"]
    assert first.left_bytes < needed
    last = collect(folders, 0)
    assert last.removed_sessions == [f"b ({folders[0].name})", f"a ({folders[0].name})"]
    assert last.notes[-1] == f"{last.left_bytes} bytes are left, more than 0: the rest is in use or bookkeeping"


def test_a_folder_of_which_it_is_not_known_what_is_needed_keeps_everything(folders: list[Path]) -> None:
    with StoreFolder(folders[0]) as opened:
        opened.disk.put_session("a", b"damaged")
    done = collect(folders, 0)
    assert f"no page is removed from {folders[0]}" in done.notes[0]
    assert "session 'a' is damaged" in done.notes[0]
    assert done.removed_sessions == [f"a ({folders[1].name})"]
    with StoreFolder(folders[0]) as opened:
        assert opened.chain_bytes().keys() == {*chains("abcdxy")}


def test_a_folder_that_is_in_use_keeps_its_length(folders: list[Path]) -> None:
    disk = DiskTier(folders[0], 8 << 20, fingerprint(1), None)
    before = disk.file_bytes
    done = collect(folders, None)
    assert done.notes == [f"{folders[0].name} is in use: what was freed in it is used again, its file stays as long"]
    assert done.num_records == 3 * len(LAYERS)
    assert disk.file_bytes >= before
    disk.close()


def test_of_a_model_that_was_updated_the_sessions_that_stay_are_named(store: Path) -> None:
    left = made_folder(store, "m", {"a": "a", "b": "b"}, names=[], former_names=["/m"])
    (said,) = collect([left], None).notes
    assert said == (
        f"{left.name} · left by an earlier version of the model: what stays of it are the sessions a, b; "
        "`stratakv sessions rm` removes them"
    )
