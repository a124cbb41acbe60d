"""Debian packages made by hand, with what no real one has."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path


def tar_of(*entries: tuple[str, bytes | str]) -> bytes:
    """A tar.xz; a `str` instead of content makes a symbolic link."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:xz") as tar:
        for name, content in entries:
            member = tarfile.TarInfo(name)
            if isinstance(content, str):
                member.type, member.linkname = tarfile.SYMTYPE, content
                tar.addfile(member)
            else:
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def ar_of(*entries: tuple[str, bytes]) -> bytes:
    parts = [b"!<arch>\n"]
    for name, data in entries:
        parts += [f"{name:<16}{0:<12}{0:<6}{0:<6}{100644:<8}{len(data):<10}`\n".encode(), data, b"\n" * (len(data) % 2)]
    return b"".join(parts)


def write_deb(path: Path, *entries: tuple[str, bytes | str]) -> Path:
    path.write_bytes(ar_of(("debian-binary", b"2.0\n"), ("control.tar.xz", b"odd"), ("data.tar.xz", tar_of(*entries))))
    return path
