"""Texts are fetched where they are not there, become what their sums name, or are not written at all."""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
import zipfile
from pathlib import Path

import pytest
from debs import write_deb
from places import EXCERPT

from stratakv.runtime.evaluation import fetch
from stratakv.runtime.evaluation.archives import FetchError, Package, members
from stratakv.runtime.evaluation.texts import PUBLISHED_SUMS, read_sums

RST = r".*/_sources/.*\.rst\.txt"


def test_an_excerpt_is_not_fetched_over(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    copy = shutil.copytree(EXCERPT, tmp_path / "texts")
    with pytest.raises(SystemExit, match="2"):
        fetch.main(["--folder", str(copy)])
    assert "holds an excerpt" in capsys.readouterr().err


def test_the_published_sums_are_of_what_fetch_makes() -> None:
    names = list(read_sums(PUBLISHED_SUMS))
    made_of = {text.name: [name for name in names if name.startswith(text.name)] for text in fetch.TEXTS}
    assert {name: len(files) for name, files in made_of.items()} == {
        "austen/": 6,
        "kjv.tsv": 1,
        "shakespeare/": 38,
        "python-docs.txt": 1,
        "words/": 2,
    }
    assert len(names) == 48


def test_words_are_plain_and_not_profane(tmp_path: Path) -> None:
    wheel = tmp_path / "words.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("wonderwords/assets/adjectivelist.txt", "wet \nbright\nhigh-pitched\nEarly\ndark")
        archive.writestr("wonderwords/assets/nounlist.txt", "harbour\nad hoc\nTV\ndamn\nabbey\n")
        archive.writestr("wonderwords/assets/profanitylist.txt", "damn\n")
        archive.writestr("wonderwords/random_word.py", "")
    made = fetch.words(members(wheel, fetch.TEXTS[-1].wanted))
    assert made == {"words/adjectives.txt": "bright\ndark\n", "words/nouns.txt": "abbey\nharbour\n"}


class Local(Package):
    """An archive that is there already."""

    def download(self, scratch: Path) -> Path:
        return write_deb(scratch / "local.deb", ("./x/_sources/b.rst.txt", b"B\n"), ("./x/_sources/a.rst.txt", b"A\n"))


def test_fetch_writes_what_the_sums_name_and_nothing_else(tmp_path: Path) -> None:
    text = fetch.Text("python-docs.txt", "PSF", Local("local", "1"), RST, fetch.python_docs)
    sums = {"python-docs.txt": hashlib.sha256(b"A\n\nB\n").hexdigest(), "kjv.tsv": ""}
    assert fetch.fetch(text, tmp_path, sums) == 5
    assert [path.name for path in tmp_path.iterdir()] == ["python-docs.txt"]

    (tmp_path / "python-docs.txt").write_text("damaged")
    with pytest.raises(FetchError, match=r"python-docs\.txt: local 1 gave another text"):
        fetch.fetch(text, tmp_path, {"python-docs.txt": "0" * 64})
    assert (tmp_path / "python-docs.txt").read_text() == "damaged"


class Gone(Package):
    def download(self, scratch: Path) -> Path:
        raise FetchError(f"{self}: not to be had;\ntry again")


def test_what_cannot_be_fetched_is_one_line_and_exit_code_2(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    text = fetch.Text("kjv.tsv", "public domain", Gone("gone", "1"), ".*", fetch.king_james)
    monkeypatch.setattr(fetch, "TEXTS", (text,))
    assert fetch.main(["--folder", str(tmp_path / "texts")]) == 2
    assert capsys.readouterr().err == "stratakv: gone 1: not to be had; try again\n"
    assert not (tmp_path / "texts").exists()


def test_a_text_that_is_there_is_not_fetched_again(tmp_path: Path) -> None:
    text = fetch.Text("kjv.tsv", "public domain", Gone("gone", "1"), ".*", fetch.king_james)
    (tmp_path / "kjv.tsv").write_text("Ruth 1:1\tNów\n", "utf-8")
    sums = {"kjv.tsv": hashlib.sha256((tmp_path / "kjv.tsv").read_bytes()).hexdigest(), "python-docs.txt": ""}
    assert fetch.fetch(text, tmp_path, sums) == len("Ruth 1:1\tNów\n")
    (tmp_path / "kjv.tsv").write_text("Ruth 1:1\tNow\n")
    with pytest.raises(FetchError, match="not to be had"):
        fetch.fetch(text, tmp_path, sums)


def test_the_citation_without_a_text_is_left_out() -> None:
    verses = [{"citation": "3 John 1:14", "text": "But I trust"}, {"citation": "3 John 1:15", "text": "[]"}]
    made = fetch.king_james({"bible/data/kjv.jsonl": "\n".join(map(json.dumps, verses)).encode()})
    assert made == {"kjv.tsv": "3 John 1:14\tBut I trust\n"}


def test_reading_novels_names_the_package_that_it_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "rdata", None)
    with pytest.raises(FetchError, match=r"austen/: .* needs a package: `pip install 'rdata>=1\.0,<2'`"):
        fetch.austen({})
