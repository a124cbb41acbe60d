"""What a method's file says, found in its docstrings."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from stratakv.runtime.cli.methods.method import KINDS, PAPER, called, first_sentence, method, sections, settings_told

INDEX, PLACEMENT, CODEC = KINDS


def test_sections_begin_with_a_word_at_the_lines_beginning() -> None:
    text = """Idea   add up, and let
             go.
    For    long replies.
    Differs  a page
             at a time. Sinks stay.
    """
    assert sections(text) == {
        "Idea": "add up, and let go.", "For": "long replies.", "Differs": "a page at a time. Sinks stay.",
    }  # fmt: skip
    assert sections("") == {}


def test_a_sentence_ends_at_a_full_stop_before_a_space() -> None:
    text = "Boxes of q.k (Quest, arXiv 2406.10774): one\nper page. More of it."
    assert first_sentence(text) == "Boxes of q.k (Quest, arXiv 2406.10774): one per page."
    assert PAPER.sub("", first_sentence(text)) == "Boxes of q.k: one per page."


def test_settings_have_what_stands_under_them_also_of_what_they_extend() -> None:
    assert dict(settings_told(Wider)) == {"pool": "Of two lines.", "window": "Tokens."}


@dataclass(frozen=True, kw_only=True, slots=True)
class Narrow:
    pool: int = 5
    """Of two
    lines."""
    bare: int = 1


@dataclass(frozen=True, kw_only=True, slots=True)
class Wider(Narrow):
    window: float = 0.5
    """Tokens."""

    def __post_init__(self) -> None:
        """No setting."""


def test_a_method_of_each_kind() -> None:
    index, placement, codec = method(INDEX, "leoam"), method(PLACEMENT, "snapkv"), method(CODEC, "kivi")
    assert (index.paper, index.number) == ("LeoAM, arXiv 2506.20187", "2506.20187")
    assert index.path == "retrieval/indexes/leoam.py"
    assert list(map(str, placement.settings)) == ["window=32", "pool=5"]
    assert placement.settings[1].says == "Neighbouring tokens that share their votes, an odd number."
    assert placement.serves == placement.sections["For"].rstrip(".")
    assert codec.summary == "Keys by channel and values by token, in 2 bits a number."
    assert method(INDEX, "dense").paper == ""


def test_an_unknown_name_is_refused_with_those_known() -> None:
    assert called("snapkv") == [PLACEMENT]
    with pytest.raises(
        ValueError, match=r"no method is called 'nope'; indexes: a2ats, .*; placements: .*; codecs: raw, "
    ):
        called("nope")
