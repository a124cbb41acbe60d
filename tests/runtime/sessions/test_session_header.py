"""A session's header and chains are read without trust: what is wrong is named, and a later version is told first."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from made_stores import chains, session_payload
from payloads import Payload

from stratakv.runtime.sessions.session_header import VERSION, header_of, is_time
from stratakv.storage import LaterVersionError, RecordError

NOTES = {"messages": [{"role": "user", "content": "?"}], "unfed": [0, 7], "system": None}


def changed(change: Callable[[Payload], None]) -> bytes:
    payload = Payload(session_payload(chains("ab")))
    change(payload)
    return payload.bytes()


def test_header_and_chains_are_those_that_were_written() -> None:
    header, found = header_of(session_payload(chains("abc"), notes=NOTES, reach=5, index="bounds 4"))
    assert found == chains("abc")
    assert header["num_tokens"] == 13
    assert (header["reach"], header["index"], header["notes"]) == (5, "bounds 4", NOTES)


def test_a_short_session_has_no_pages_and_an_early_one_no_reach() -> None:
    header, found = header_of(session_payload([], saved_at=None))
    assert found == []
    assert (header["num_tokens"], header["reach"]) == (1, 0)


def test_of_a_later_version_nothing_but_the_version_is_looked_at() -> None:
    def later(payload: Payload) -> None:
        payload.header = {"version": VERSION + 1}
        payload.layout["tokens"]["dtype"] = "I48"

    with pytest.raises(LaterVersionError, match=f"^version: has format {VERSION + 1}, this program reads {VERSION}$"):
        header_of(changed(later))


@pytest.mark.parametrize("version", [0, -1, None, True, "2", 2.0, [2]])
def test_another_version_is_no_later_one(version: Any) -> None:
    with pytest.raises(RecordError, match=r"^version: has format ") as caught:
        header_of(session_payload([], version=version))
    assert not isinstance(caught.value, LaterVersionError)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"num_pages": 3}, "num_pages: 3, but there are 9 tokens and 32 bytes of chains"),
        ({"num_pages": 1}, "num_pages: 1, but"),
        ({"index": "x" * 4097}, "index: not a name"),
        ({"reach": 10}, "reach: 10, but there are 9 tokens"),
        ({"reach": True}, "reach: True, but"),
        ({"saved_at": "yesterday"}, "saved_at: 'yesterday'"),
        ({"notes": NOTES | {"unfed": [-1]}}, "notes.unfed: not a list of token ids"),
        ({"notes": NOTES | {"messages": [{"role": "user", "content": "?", "more": 1}]}}, "notes.messages: not a list"),
        ({"notes": NOTES | {"system": 7}}, "notes.system: 7, not a text"),
        ({"notes": NOTES | {"generation": [1]}}, "notes.generation: .*, not an object"),
        ({"notes": None}, "notes: None, expected an object"),
    ],
)
def test_what_is_wrong_is_named(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(RecordError, match=f"^{says}"):
        header_of(session_payload(chains("ab"), **changes))


@pytest.mark.parametrize(("name", "dtype"), [("tokens", "I64"), ("chains", "U8")])
def test_lists_are_of_their_kind(name: str, dtype: str) -> None:
    def turned(payload: Payload) -> None:
        payload.layout[name]["shape"].append(1)

    for change in (turned, lambda payload: payload.drop(name)):
        with pytest.raises(RecordError, match=f"^{name}: .*, expected a list of {dtype}$"):
            header_of(changed(change))


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (0, True),
        (99_999_999_999.5, True),
        (1e11, False),
        (-1, False),
        (float("nan"), False),
        ("1", False),
        (None, False),
    ],
)
def test_times_of_which_a_date_can_be_made(value: Any, expected: bool) -> None:
    assert is_time(value) is expected
