"""Haystacks begin alike whatever their length, and what is hidden stands where it should."""

from __future__ import annotations

import itertools
import random

import pytest

from stratakv.runtime.evaluation.tasks.haystack import Endless, novel, paragraphs, scatter, sentences
from stratakv.runtime.evaluation.texts import Texts


class Novels(Texts):
    def __init__(self, *books: str) -> None:
        self.books = books

    def novels(self) -> dict[str, str]:
        return {str(place): book for place, book in enumerate(self.books)}


def test_a_longer_text_begins_like_a_shorter_one() -> None:
    stream = Endless(map(str, itertools.count()))
    assert [stream.take(count) for count in (2, 4, 1)] == [["0", "1"], ["0", "1", "2", "3"], ["0"]]


@pytest.mark.parametrize("seed", range(6))
def test_novels_follow_each_other_round_and_round(seed: int) -> None:
    """From a random place on: what stands before it comes when its novel's turn comes again."""
    round_ = ["A1.", "A2.", "A3.", "B1.", "B2."]
    found = novel(random.Random(seed), Novels("A1. A2. A3.", "B1. B2.")).take(12)
    start = round_.index(found[0])
    assert found == list(itertools.islice(itertools.cycle(round_), start, start + 12))


def test_the_place_where_it_begins_is_random() -> None:
    texts = Novels("A1. A2. A3.", "B1. B2.")
    assert len({novel(random.Random(seed), texts).take(1)[0] for seed in range(40)}) == 5


def test_pieces_with_a_reference_are_left_out() -> None:
    stream = novel(random.Random(0), Novels("He saw HOLM. She went. To Holmes. They stayed."), without=["Holm"])
    assert sorted(stream.take(2)) == ["She went.", "They stayed."]


def test_a_novel_without_paragraphs_is_named() -> None:
    with pytest.raises(ValueError, match=r"a novel has no paragraphs; it begins 'CHAPTER I'"):
        novel(random.Random(0), Novels("CHAPTER I"), paragraphs).take(1)


def test_texts_are_split_where_they_should_be() -> None:
    assert sentences('He came. "Why?"  she\nsaid. "Now!" Mr. Elton left! e.g. this') == [
        "He came.", '"Why?" she said.', '"Now!"', "Mr. Elton left! e.g. this",
    ]  # fmt: skip
    long = "A paragraph of some length, " * 5
    assert paragraphs(f"CHAPTER I\n\n{long}\n\n\nShort.\n \n{long}\n") == [long.strip()] * 2


def test_needles_keep_their_order_and_may_stand_at_the_ends() -> None:
    assert scatter(["a", "b"], [(1.0, "4"), (0.0, "1"), (0.5, "2"), (0.6, "3")]) == ["1", "a", "2", "3", "b", "4"]
