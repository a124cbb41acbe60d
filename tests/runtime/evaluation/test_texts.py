"""The evaluation's texts: opened from the excerpt, and refused when damaged."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
from places import EXCERPT

from stratakv.runtime.evaluation.texts import MissingTextError, Speech, Texts, speeches


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
