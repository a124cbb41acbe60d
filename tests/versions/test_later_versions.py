"""What a later version wrote is called that, and it finds all of it again, whatever this version did meanwhile."""

from __future__ import annotations

import json
import logging
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import safetensors.torch
import torch
from hostile import plant
from payloads import Payload
from places import RECALL, ROOT
from records import change_records, resealed, stored
from typer.testing import CliRunner

from stratakv.runtime import KVConfig, Runtime, SessionError
from stratakv.runtime.api.errors import ProfileError
from stratakv.runtime.cli.app import app
from stratakv.runtime.engine import profile
from stratakv.runtime.evaluation.calibrate import calibrate
from stratakv.runtime.model import identity
from stratakv.runtime.sessions import session_header
from stratakv.runtime.sessions.saved import StoreFolder, chains_of_all, store_folders
from stratakv.storage import CHAIN_BYTES, LaterStoreError, PageLayout, UnknownPagesError
from stratakv.storage.codecs import CODECS, make_codec
from stratakv.storage.disk import record

NAME, OTHER = "from-later", "of-ours"
LATER = "written by a later version of stratakv"
LMDB_VERSION = 20
"""Where a meta page of `data.mdb` has the number of LMDB's own format."""


def text(seed: int) -> str:
    return " ".join(f"k{(seed + i) % 128} v{(seed + 7 * i) % 128}" for i in range(200))


def load(store: Path, **changes: Any) -> Runtime:
    return Runtime.load(RECALL, kv=KVConfig(path=store, **{"host_gb": 0.05, "disk_gb": 0.05, **changes}))


def sessions(store: Path, *words: str) -> str:
    done = CliRunner().invoke(app, ["sessions", words[0], "--kv-dir", str(store), *words[1:]])
    assert done.exit_code in (0, 2), done.output
    return done.output


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with a session that is about to become a later version's, and one of ours."""
    store = tmp_path_factory.mktemp("later") / "kv"
    with load(store) as runtime:
        for seed, name in enumerate((NAME, OTHER)):
            chat = runtime.chat()
            chat.read_text(text(seed))
            chat.save(name)
            chat.close()
    return store


@pytest.fixture
def store(made: Path, tmp_path: Path) -> Path:
    return shutil.copytree(made, tmp_path / "kv")


def folder_of(store: Path) -> Path:
    (folder,) = store_folders(store)
    return folder


# The numbers


def in_all(*databases: str, change: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        for database in databases:
            change_records(folder, database, change)

    return apply


def in_one(*databases: str, change: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    """To the later session's record, and to the pages it needs; what is ours stays."""

    def apply(folder: Path) -> None:
        with StoreFolder(folder) as opened:
            ours = opened.session(OTHER)
            version = opened.disk.session_version(OTHER)
        assert ours is not None
        chains = {*ours.chains}

        def only_theirs(old: bytes) -> bytes:
            is_ours = record.checksum(old) == version or old[26:42] in chains
            return old if is_ours else change(old)

        in_all(*databases, change=only_theirs)(folder)

    return apply


def header_says(version: int) -> Callable[[bytes], bytes]:
    def change(packed: bytes) -> bytes:
        whole = record.unpack(packed, record.SESSION, packed[8:24], b"")
        payload = Payload(bytes(whole.payload))
        payload.header["version"] = version
        payload.layout["tokens"]["dtype"] = "I64" if version == session_header.VERSION else "I48"
        return record.pack(record.SESSION, packed[8:24], b"", payload.bytes())

    return change


def description_says(number: int) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        said = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**said, "format": number}))

    return apply


def file_says(number: int) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        with (folder / "data.mdb").open("r+b") as file:
            for page in (0, 4096):
                file.seek(page + LMDB_VERSION)
                file.write(number.to_bytes(4, "little"))

    return apply


def codec_is(code: int) -> Callable[[Path], None]:
    return in_all("pages", change=lambda old: resealed(old, codec=code))


class Number(NamedTuple):
    """A store written with our number, or with a later one, and what of it this version can read then."""

    ours: Callable[[Path], None]
    later: Callable[[Path], None]
    session: bool = False
    pages: bool = False
    file: bool = True


def record_says(version: int) -> Callable[[bytes], bytes]:
    return lambda old: resealed(old, version=version)


RECORD, HEADER = record.VERSION, session_header.VERSION
NUMBERS = {
    "storage/disk/record.py VERSION": Number(
        in_all("pages", "sessions", change=record_says(RECORD)),
        in_one("pages", "sessions", change=record_says(RECORD + 1)),
    ),
    "storage/disk/record.py LAST_CODEC": Number(codec_is(1), codec_is(record.LAST_CODEC + 1), session=True),
    "runtime/sessions/session_header.py VERSION": Number(
        in_all("sessions", change=header_says(HEADER)), in_one("sessions", change=header_says(HEADER + 1)), pages=True
    ),
    "runtime/model/identity.py _FORMAT": Number(
        description_says(identity._FORMAT), description_says(identity._FORMAT + 1), session=True, pages=True
    ),
    "LMDB": Number(file_says(1), file_says(2), file=False),
}
ELSEWHERE = {
    "runtime/engine/profile.py _FORMAT",
    "runtime/model/identity.py _FORMER_FORMAT",
    "runtime/model/conversion.py VERSION",
}
"""Tested below; of the past; of converted models (`test_gguf_versions.py`)."""


def test_every_number_of_a_format_is_tried() -> None:
    said = re.compile(r"^(_?(?:\w+_)?(?:VERSION|FORMAT|CODEC)) = \d", re.MULTILINE)
    found = {
        f"{path.relative_to(ROOT)} {name}"
        for room in ("runtime", "storage", "retrieval")
        for path in sorted((ROOT / room).rglob("*.py"))
        for name in said.findall(path.read_text(encoding="utf-8"))
    }
    assert found == {name for name in NUMBERS if name.endswith(("VERSION", "FORMAT", "CODEC"))} | ELSEWHERE
    layout = PageLayout(num_heads=1, page_size=16, head_dim=8, dtype="float32")
    assert max(make_codec(name, layout).code for name in CODECS) == record.LAST_CODEC


# What this version does


@pytest.mark.parametrize("number", NUMBERS.values(), ids=NUMBERS)
def test_the_commands_leave_it_as_it_is(store: Path, number: Number) -> None:
    folder = folder_of(store)
    look = stored if number.file else lambda folder: {("", b""): (folder / "data.mdb").read_bytes()}
    number.later(folder)
    before = look(folder)
    said = "".join(sessions(store, *words) for words in (["list"], ["show", NAME], ["verify"], ["gc"]))
    if number is not NUMBERS["storage/disk/record.py LAST_CODEC"]:  # its session is as good as any
        said += sessions(store, "gc", "--max-gb", "0")
    assert LATER in said
    assert "damaged" not in said.replace("0 damaged or missing", "")
    assert f"rm {NAME}" not in said
    assert look(folder) == before
    if number.file:
        assert sessions(store, "rm", OTHER) == ""
        sessions(store, "gc")
        sessions(store, "verify")
    number.ours(folder)
    restored_whole(store)


def restored_whole(store: Path) -> None:
    """The later version is back, and finds its session."""
    with load(store) as runtime:
        chat = runtime.chat(session=NAME)
        assert chat.restored == chat.num_tokens > 300


@pytest.mark.parametrize(
    "number", [one for one in NUMBERS.values() if one.file], ids=[name for name in NUMBERS if NUMBERS[name].file]
)
def test_chats_and_a_full_disk_tier_leave_it_as_it_is(
    store: Path, number: Number, caplog: pytest.LogCaptureFixture
) -> None:
    folder = folder_of(store)
    number.later(folder)
    before = stored(folder)
    with caplog.at_level(logging.WARNING), load(store, disk_gb=0.0018) as runtime:
        chat = runtime.chat()
        read = chat.read_text(text(0))
        assert (read.cached > 300) == number.pages
        if not number.session:
            with pytest.raises(SessionError, match=f"'{NAME}' was {LATER} .*; it is left as it is"):
                runtime.chat(session=NAME)
            with pytest.raises(SessionError, match=f"'{NAME}' was not saved: .*{LATER}"):
                chat.save(NAME)
        chat.close()
        for seed in range(2, 10):
            chat = runtime.chat()
            chat.read_text(text(seed))
            chat.close()
        swept = runtime.store.disk_error is None
        assert swept == (number is NUMBERS["storage/disk/record.py LAST_CODEC"])
        assert swept or LATER in str(runtime.store.disk_error)
        runtime.store.check_integrity()
    assert "damaged" not in caplog.text
    if number is not NUMBERS["storage/disk/record.py LAST_CODEC"]:
        assert before.items() <= stored(folder).items()
    number.ours(folder)
    restored_whole(store)


def test_a_folder_is_not_described_anew(store: Path) -> None:
    """By what it says there a later version finds a folder that it took over from us."""
    folder = folder_of(store)
    description_says(identity._FORMAT + 1)(folder)
    said = (folder / "config.json").read_text()
    load(store).close()
    assert (folder / "config.json").read_text() == said
    assert store_folders(store) == [folder]


def test_replacing_it_has_to_be_asked_for(store: Path) -> None:
    NUMBERS["runtime/sessions/session_header.py VERSION"].later(folder_of(store))
    with load(store) as runtime:
        chat = runtime.chat()
        chat.read_text(text(3))
        assert str(chat.would_replace(NAME)) == LATER
        chat.save(NAME, replace=True)
        assert runtime.chat(session=NAME).num_tokens == chat.num_tokens
    assert sessions(store, "rm", NAME) == ""


@pytest.mark.parametrize("is_sound", [True, False])
def test_names_that_only_a_later_version_allows(store: Path, is_sound: bool) -> None:
    """Under a key that is no name here, the session keeps its pages; what is no session at all does not."""
    folder = folder_of(store)
    NUMBERS["runtime/sessions/session_header.py VERSION"].later(folder)
    with StoreFolder(folder) as opened:
        packed = opened.disk.session_at(NAME.encode()) if is_sound else b"something else"
        opened.disk.delete_session(NAME)
    assert packed is not None
    plant(folder, b"sessions", b"a/b", record.pack(record.SESSION, bytes.fromhex(folder.name[-32:]), b"", packed))
    before = stored(folder)
    listed, collected, checked = (sessions(store, word) for word in ("list", "gc", "verify"))
    assert NAME not in listed
    assert (LATER in collected) == (LATER in checked) == is_sound
    assert (stored(folder) == before) == is_sound


def flipped(payload: bytes, at: int) -> bytes:
    return payload[:at] + bytes([payload[at] ^ 1]) + payload[at + 1 :]


def test_of_a_session_with_damaged_chains_it_is_not_known_which_pages_are_its(store: Path) -> None:
    folder = folder_of(store)
    with StoreFolder(folder) as opened:
        saved = opened.session(NAME)
    assert saved is not None
    change_records(folder, "sessions", lambda old: flipped(old, at) if (at := old.find(saved.chains[1])) > 0 else old)
    before = stored(folder)
    with StoreFolder(folder) as opened, pytest.raises(UnknownPagesError, match=f"sessions rm {NAME}"):
        chains_of_all(opened.disk)
    for words in (["gc"], ["gc", "--max-gb", "0"]):
        assert f"session '{NAME}' is damaged; to remove it: stratakv sessions rm {NAME}" in sessions(store, *words)
    assert stored(folder) == before
    for name in (NAME, OTHER):
        assert sessions(store, "rm", name) == ""
    assert "no page is removed" not in sessions(store, "gc")
    assert not stored(folder)


def test_of_a_session_that_is_damaged_elsewhere_the_pages_are_kept_and_others_are_not(store: Path) -> None:
    folder = folder_of(store)
    with StoreFolder(folder) as opened:
        saved = opened.session(NAME)
        assert saved is not None
        mine = {key for key, _ in opened.disk.page_sizes() if key[-CHAIN_BYTES:] in saved.chains}
    change_records(folder, "sessions", lambda old: flipped(old, len(old) - 1))
    sessions(store, "rm", OTHER)
    assert "no page is removed" not in sessions(store, "gc")
    with StoreFolder(folder) as opened:
        assert {key for key, _ in opened.disk.page_sizes()} == mine
        assert opened.disk.session_names() == [NAME]


def test_gc_does_without_a_folder_that_it_cannot_read(store: Path, tmp_path: Path) -> None:
    """Others of the store are cleaned all the same."""
    folder = folder_of(store)
    later = shutil.copytree(folder, folder.with_name(f"later_{bytes(16).hex()}"))
    file_says(4)(later)
    sessions(store, "rm", OTHER, "--in", folder.name)
    said = sessions(store, "gc")
    assert LATER in said
    assert int(said.splitlines()[-1].split()[0]) >= 50
    with pytest.raises(LaterStoreError, match=LATER):
        StoreFolder(later)


class Silent:
    def start(self, total: int) -> None: ...

    def advance(self, what: str) -> None: ...


def later_profile(path: Path) -> bytes:
    """One that a later version wrote, with numbers that this one does not know."""
    header = json.dumps({"format": profile._FORMAT + 1, "model": "x", "digest": "y", "notes": {}})
    whole = safetensors.torch.save({"layer.0.x": torch.zeros(2, dtype=torch.uint8)}, {"stratakv_profile": header})
    path.write_bytes(whole.replace(b'"U8"', b'"Q7"'))
    return path.read_bytes()


def test_a_later_profile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "profile.safetensors"
    whole = later_profile(path)
    with pytest.raises(ProfileError, match=f"{re.escape(str(path))} was {LATER} .*format 2") as caught:
        load(tmp_path / "kv", index="a2ats", profile=path)
    assert "stratakv calibrate" not in str(caught.value)
    monkeypatch.setattr("stratakv.runtime.engine.profile.cache_dir", lambda: tmp_path)
    with pytest.raises(ProfileError, match=f"was {LATER} .*it is left as it is"):
        calibrate(str(RECALL), [RECALL / "config.json"], out=path, ticker=Silent())
    assert path.read_bytes() == whole
