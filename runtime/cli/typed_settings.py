r"""A setting as a person types it: read by the type that the setting has, never guessed from the text.

True, yes, on, 1 / False, no, off, 0        a switch
12, 1e3, 12.0                               a whole number
none                                        no seed, no stop strings
the rest of the line                        one stop string; `\n`, `\t` as in most languages, quotes keep blanks
["a", "b"]                                  several
"""

from __future__ import annotations

import json
import re
from dataclasses import fields
from difflib import get_close_matches
from typing import Any, get_type_hints

from ..api.config import GenerationConfig
from ..api.typed_numbers import real_number, whole_number

ALIASES = {
    "max_tokens": "max_new_tokens", "n": "max_new_tokens", "n_predict": "max_new_tokens", "temp": "temperature",
    "stop": "stop_strings", "repeat_penalty": "repetition_penalty", "sample": "do_sample",
}  # fmt: skip
"""Names of settings in other programs, with ours."""
ALLOWED = {
    "max_new_tokens": "a whole number from 1, or -1 for as many as fit",
    "do_sample": "true or false (also yes, no, on, off, 1, 0)",
    "temperature": "a number above 0, which samples, or 0, which is greedy",
    "top_p": "a number above 0, at most 1",
    "top_k": "a whole number from 0; 0 switches it off",
    "min_p": "a number from 0, below 1",
    "repetition_penalty": "a number from 0.001 to 1000; 1 changes nothing",
    "stop_strings": 'a text (\\n and \\t are understood), a JSON list like ["a", "b"], or none',
    "seed": "a whole number from 0 to 2**64 - 1, or none for fresh randomness each time",
    "max_repeats": "a whole number from 2 to 1000, 0 for never, or none for what a chat does",
    "drop_thinking": "true or false (also yes, no, on, off, 1, 0)",
    "ignore_eos": "true or false (also yes, no, on, off, 1, 0)",
}
_YES, _NO = {"true", "yes", "on", "1", "y", "t"}, {"false", "no", "off", "0", "n", "f"}
_NONE = {"none", "null", "nothing"}
_ONLY_SAMPLING = ("top_p", "top_k", "min_p", "seed")
_SHOWN = 60


def split_setting(typed: str) -> tuple[str, str | None]:
    """The name and the value of `name value`, `name=value` or `name = value`; None where no value was typed.

    Raises ValueError for a name that no setting has.
    """
    match = re.match(r"\s*([^\s=]*)\s*=?(.*)", typed, re.DOTALL)
    assert match is not None
    name = match[1].lower().replace("-", "_").strip("_")
    name = ALIASES.get(name, name)
    names = [field.name for field in fields(GenerationConfig)]
    if name not in names:
        close = get_close_matches(name, [*names, *ALIASES], 1)
        meant = f"did you mean {ALIASES.get(close[0], close[0])}? " if close else ""
        raise ValueError(f"unknown generation argument(s) {match[1] or typed}; {meant}known: {', '.join(names)}")
    return name, match[2].strip() or None


def changed(config: GenerationConfig, name: str, value: str) -> GenerationConfig:
    """The settings with `name` as typed. Raises ValueError, which names setting, value and what is allowed."""
    parsed = _parsed(name, value)
    changes = {name: parsed}
    if name == "temperature":
        changes = {"temperature": parsed, "do_sample": True} if parsed else {"do_sample": False}
    try:
        return GenerationConfig.from_kwargs(config, **changes)
    except (ValueError, TypeError, OverflowError) as error:
        raise _wrong(name, value) from error


def in_words(config: GenerationConfig, name: str) -> str:
    """A setting's present meaning, in words for people."""
    if name in ("temperature", "do_sample"):
        return f"replies are sampled at temperature {config.temperature:g}" if config.do_sample else (
            "replies are greedy: the likeliest token each time (do_sample is off)"
        )  # fmt: skip
    value = getattr(config, name)
    if name == "stop_strings":
        return f"a reply ends before {' or '.join(map(repr, value))}" if value else "no stop strings"
    if name == "max_new_tokens" and value == -1:
        return "a reply may go on until there is no room (max_new_tokens=-1)"
    unused = " (not used now: replies are greedy)" if name in _ONLY_SAMPLING and not config.do_sample else ""
    return f"{name} is {value}{unused}"


def unescaped(text: str) -> str:
    r"""`\n`, `\t`, `\r` and `\\` as the characters they stand for; any other backslash stays."""
    meant = {"n": "\n", "t": "\t", "r": "\r", "\\": "\\"}
    return re.sub(r"\\([ntr\\])", lambda found: meant[found[1]], text)


def _parsed(name: str, value: str) -> Any:
    kind = get_type_hints(GenerationConfig)[name]
    try:
        if kind is bool:
            return _switch(value)
        if kind is float:
            return real_number(value)
        if kind is int:
            return whole_number(value)
        if kind == int | None:
            return None if value.lower() in _NONE | ({"random"} if name == "seed" else set()) else whole_number(value)
    except (ValueError, OverflowError):
        raise _wrong(name, value) from None
    return _texts(name, value)


def _switch(value: str) -> bool:
    word = value.lower()
    if word not in _YES | _NO:
        raise ValueError(value)
    return word in _YES


def _texts(name: str, value: str) -> tuple[str, ...]:
    if value.lower() in _NONE:
        return ()
    if value[0] in '["' and (found := _from_json(value)) is not None:
        texts = found if isinstance(found, list) else [found]
        if all(isinstance(text, str) and text for text in texts):
            return tuple(texts)
        raise _wrong(name, value)
    if len(value) > 1 and value[0] == value[-1] == "'":
        value = value[1:-1]
    if not value:
        raise _wrong(name, "''")
    return (unescaped(value),)


def _from_json(value: str) -> Any:
    """A list or text written as JSON; None if it is none, and then the text is meant as it stands."""
    try:
        found = json.loads(value)
    except (ValueError, RecursionError):
        return None
    return found


def _wrong(name: str, value: str) -> ValueError:
    short = value if len(value) <= _SHOWN else f"{value[:_SHOWN]}..."
    return ValueError(f"{name} is {ALLOWED[name]}, not {short!r}; it stays as it was")
