"""Names of files are bytes: whatever a file system holds can be read, and is shown as well as it can be."""

from __future__ import annotations

import io
import json
import logging
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from places import RECALL
from typer.testing import CliRunner

from stratakv.runtime import KVConfig, ModelFileError, Runtime
from stratakv.runtime.cli import app as cli
from stratakv.runtime.cli.app import app
from stratakv.runtime.process.outputs import write_text
from stratakv.runtime.process.terminal import printable
from stratakv.storage import StoreUnavailableError
from stratakv.storage.files.file_names import as_text, readable_path

ODD = os.fsdecode(b"caf\xe9")
"""Latin-1, as old disks and archives have it."""


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("plain.txt", "plain.txt"), ("caf\u00e9 \u65e5.txt", "caf\u00e9 \u65e5.txt"), (ODD, r"caf\xe9"),
        (Path("a") / ODD, r"a/caf\xe9"), (os.fsdecode(b"\xff\xfe"), r"\xff\xfe"), ("half \ud800", r"half \xed\xa0\x80"),
        (os.fsdecode(b"a\n\x1b"), "a\n\x1b"),
    ],
)  # fmt: skip
def test_any_name_is_text(name: str | Path, text: str) -> None:
    assert as_text(name) == text
    assert as_text(text) == text


def test_two_names_stay_two() -> None:
    names = [os.fsdecode(bytes([byte])) for byte in range(1, 256)]
    for show in (as_text, printable):
        assert len({show(f"a{name}b") for name in names if name.strip()}) == len([n for n in names if n.strip()])


@pytest.mark.parametrize(
    ("encoding", "read", "text"),
    [
        ("ascii", "caf\udcc3\udca9", "caf\u00e9"),
        ("latin-1", "caf\u00c3\u00a9", "caf\u00e9"),
        ("latin-1", "caf\u00e9", "caf\u00e9"),
    ],
)
def test_a_name_is_read_as_what_it_is_in_any_locale(
    encoding: str, read: str, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "fsencode", lambda name: name.encode(encoding, "surrogateescape"))
    assert as_text(read) == text


def test_a_path_that_is_no_text_has_a_link_that_is(tmp_path: Path) -> None:
    (tmp_path / ODD).mkdir()
    (tmp_path / ODD / "file").write_text("found")
    with readable_path(tmp_path / ODD) as link:
        assert str(link).isascii()
        assert (link / "file").read_text() == "found"
    assert not link.exists()
    assert (tmp_path / ODD / "file").read_text() == "found"
    with readable_path(tmp_path) as same:
        assert same == tmp_path


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, documents and a store, all called so."""
    place = tmp_path_factory.mktemp("names") / ODD
    shutil.copytree(RECALL, place / ODD)
    for letter, name in (("1", b"n\xe9.txt"), ("2", b"n\xe8.txt")):
        (place / os.fsdecode(name)).write_text(f"k{letter} v{letter} " * 30)
    return place


def test_it_is_read_saved_and_restored(place: Path) -> None:
    first, second = sorted(place.glob("n*.txt"), key=os.fsencode, reverse=True)
    kv = KVConfig(path=place / "kv", disk_gb=0.1)
    with Runtime.load(place / ODD, kv=kv) as runtime:
        chat = runtime.chat()
        chat.read(first)
        chat.read(os.fsencode(second))
        chat.read_text("k3 v3 " * 9, second.name)
        chat.read_text("k4 v4 " * 9, first)
        said = [message["content"] for message in chat.messages]
        assert said == [r"n\xe9.txt", r"n\xe8.txt", r"n\xe8.txt", as_text(first)]
        chat.save("s")
        json.dumps(runtime.stats(), ensure_ascii=False).encode()
    with Runtime.load(place / ODD, kv=kv) as runtime:
        chat = runtime.chat(session="s")
        assert [message["content"] for message in chat.messages] == said
        assert chat.restored == chat.num_tokens
        assert runtime.store.disk is not None
        assert runtime.store.disk.compact()
    (config,) = (place / "kv").glob("*/config.json")
    assert json.loads(config.read_text())["model"] == as_text(place / ODD)


def test_the_command_reads_and_shows_it(place: Path, tmp_path: Path) -> None:
    out = tmp_path / os.fsdecode(b"r\xe9.json")
    store = str(place / os.fsdecode(b"k\xe8v"))
    names = [str(path) for path in sorted(place.glob("n*.txt"), key=os.fsencode)]
    command = [sys.executable, "-m", "stratakv.runtime"]
    environment = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "TMPDIR": str(tmp_path)}
    asked = [*command, "chat", "-m", str(place / ODD), "--kv-dir", store, "--disk-kv-gb", "0.1", "-n", "2"]
    asked += ["-f", names[0], "-f", names[1], "-p", "? k1", "--json", "--save", "s"]
    ran = subprocess.run(asked, env=environment, capture_output=True)
    assert (ran.returncode, ran.stderr) == (0, b"")
    assert json.loads(ran.stdout)["text"]
    shown = CliRunner().invoke(app, ["sessions", "show", "s", "--kv-dir", store])
    assert "messages  4" in shown.stdout
    listed = CliRunner().invoke(app, ["sessions", "list", "-m", str(place / ODD), "--kv-dir", store])
    assert r"caf\xe9" in listed.stdout
    write_text(out, "{}")
    assert out.read_text() == "{}"


def test_every_error_and_log_can_be_printed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    odd = tmp_path / ODD
    odd.mkdir(mode=0o755)
    strict = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")
    for broken in (odd, odd / "x.gguf"):
        with pytest.raises(ModelFileError) as caught:
            Runtime.load(broken)
        print(caught.value, file=strict)
        assert r"caf\xe9" in str(caught.value)
    (odd / "file").write_text("")
    with caplog.at_level(logging.WARNING), pytest.raises(StoreUnavailableError) as refused:
        Runtime.load(RECALL, kv=KVConfig(path=odd / "file", disk_gb=0.1))
    print(refused.value, file=strict)
    run = CliRunner().invoke(app, ["chat", "-m", str(RECALL), "-f", str(odd / "none.txt"), "-p", "x"])
    assert run.stderr == f"stratakv: {tmp_path}/caf\\xe9/none.txt: no such file\n"


def test_streams_keep_two_names_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="ascii"))
    cli._prepare_streams()
    print(f"{ODD} and {os.fsdecode(bytes([0xE8]))}, caf\u00e9")
    sys.stdout.flush()
    assert raw.getvalue() == rb"caf\xe9 and \xe8, caf?" + b"\n"
