"""Archives are the pinned ones or refused, and only what is wanted is read from them, in memory."""

from __future__ import annotations

import hashlib
import io
import itertools
import subprocess
import tarfile
import zipfile
from http.client import IncompleteRead
from pathlib import Path
from typing import Any
from urllib.error import URLError

import pytest
from debs import ar_of, write_deb

from stratakv.runtime.evaluation.archives import Debian, FetchError, PyPI, deb_data, members

RST = r".*/_sources/.*\.rst\.txt"


def test_wanted_regular_files_are_read_from_a_deb(tmp_path: Path) -> None:
    root = "./usr/share/doc/html/_sources"
    deb = write_deb(
        tmp_path / "docs.deb",
        (f"{root}/a.rst.txt", b"A"),
        (f"{root}/b/c.rst.txt", b"C"),
        (f"{root}/again.rst.txt", "a.rst.txt"),
        ("./usr/share/doc/html/a.html", b"<p>"),
    )
    assert members(deb, RST) == {f"{root}/a.rst.txt": b"A", f"{root}/b/c.rst.txt": b"C"}


@pytest.mark.parametrize("name", ["/x/_sources/a.rst.txt", "./x/_sources/../../../a.rst.txt"])
def test_members_that_lead_outside_are_refused(tmp_path: Path, name: str) -> None:
    deb = write_deb(tmp_path / "docs.deb", (name, b"A"))
    with pytest.raises(FetchError, match="leads out of the archive"):
        members(deb, RST)
    assert [path.name for path in tmp_path.iterdir()] == ["docs.deb"]


@pytest.mark.parametrize("data", [b"", b"PK\3\4", ar_of(("debian-binary", b"2.0\n")), ar_of(("data.tar.xz", b""))[:40]])
def test_what_is_no_deb_is_refused(data: bytes) -> None:
    with pytest.raises(FetchError, match=r"no data\.tar"):
        deb_data(data)


def test_wheels_and_source_archives_are_read_alike(tmp_path: Path) -> None:
    wheel, source = tmp_path / "a.whl", tmp_path / "a.tar.gz"
    with zipfile.ZipFile(wheel, "w") as archive, tarfile.open(source, "w:gz") as tar:
        for name in ("a/data.txt", "a/data.txt.py"):
            archive.writestr(name, name)
            member = tarfile.TarInfo(name)
            member.size = len(name)
            tar.addfile(member, io.BytesIO(name.encode()))
    assert members(wheel, r"a/.*\.txt") == members(source, r"a/.*\.txt") == {"a/data.txt": b"a/data.txt"}
    with pytest.raises(FetchError, match=r"^a\.whl: has no file b/\.\*$"):
        members(wheel, "b/.*")


@pytest.fixture
def pip(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What pip says; where it says nothing, it has downloaded the archive. No process is started."""
    said: list[str] = []

    def run(command: list[str], **named: Any) -> subprocess.CompletedProcess[str]:
        places = dict(itertools.pairwise(command))
        assert "--require-hashes" in command
        assert Path(places["--requirement"]).read_text() == "words==1.0 --hash=sha256:abc\n"
        if not said:
            target = Path(places["--dest"])
            target.mkdir()
            (target / "words-1.0.whl").write_bytes(b"PK")
        return subprocess.CompletedProcess(command, int(bool(said)), "", "\n".join(said))

    monkeypatch.setattr(subprocess, "run", run)
    return said


def test_pip_is_told_the_version_and_the_hash(pip: list[str], tmp_path: Path) -> None:
    assert PyPI("words", "1.0", sha256="abc").download(tmp_path) == tmp_path / "archive" / "words-1.0.whl"


def test_the_last_error_of_pip_is_told(pip: list[str], tmp_path: Path) -> None:
    pip += ["ERROR: Could not find a version", "ERROR: No matching distribution", "a note"]
    with pytest.raises(FetchError, match=r"^words 1\.0: pip cannot .* try again \(ERROR: No matching distribution\)$"):
        PyPI("words", "1.0", sha256="abc").download(tmp_path)
    pip[:] = ["no module named pip"]
    with pytest.raises(FetchError, match=r"\(no module named pip\)$"):
        PyPI("words", "1.0", sha256="abc").download(tmp_path)


class Web:
    """What there is on each host; asked for anything else, it is not to be reached."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, **hosts: bytes) -> None:
        self.asked: list[str] = []
        self._hosts = hosts
        monkeypatch.setattr("shutil.which", lambda name: None)
        monkeypatch.setattr("urllib.request.urlopen", self._open)

    def _open(self, url: str, timeout: float) -> io.BytesIO:
        self.asked.append(url)
        host = url.split("/")[2].split(".")[0]
        if host not in self._hosts:
            raise URLError("no route")
        return Cut() if self._hosts[host] == CUT else io.BytesIO(self._hosts[host])


CUT = b"ends too early"


class Cut(io.BytesIO):
    """An answer whose connection breaks."""

    def read(self, size: int | None = -1) -> bytes:
        raise IncompleteRead(b"")


DOCS = Debian("docs", "1-2", pool="d/docs", sha256=hashlib.sha256(b"docs").hexdigest(), sha1="5a1")


@pytest.mark.parametrize("pool", [{}, {"deb": b"newer"}, {"deb": CUT}], ids=["not reached", "replaced", "cut off"])
def test_what_the_pool_has_no_more_comes_from_the_archive_of_all_versions(
    pool: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    web = Web(monkeypatch, **pool, snapshot=b"docs")
    assert DOCS.download(tmp_path).read_bytes() == b"docs"
    assert web.asked == [
        "https://deb.debian.org/debian/pool/main/d/docs/docs_1-2_all.deb", "https://snapshot.debian.org/file/5a1",
    ]  # fmt: skip


def test_other_bytes_than_the_pinned_ones_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Web(monkeypatch, deb=b"newer", snapshot=b"other")
    with pytest.raises(FetchError, match=rf"^docs 1-2: neither apt-get nor .* SHA-256 {DOCS.sha256[:12]}\.\.\.; check"):
        DOCS.download(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_apt_get_is_asked_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(command: list[str], *, cwd: Path, **named: Any) -> None:
        assert command == ["apt-get", "download", "docs=1-2"]
        (cwd / "docs_1-2_all.deb").write_bytes(b"docs")

    web = Web(monkeypatch)
    monkeypatch.setattr("shutil.which", lambda name: f"/usr/bin/{name}")
    monkeypatch.setattr(subprocess, "run", run)
    assert DOCS.download(tmp_path).read_bytes() == b"docs"
    assert web.asked == []
