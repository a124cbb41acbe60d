"""Values of settings as their types: whatever means the same is taken, anything else is refused by name.

numpy's and others' scalars are numbers like Python's (the `numbers` tower tells); truth values are no numbers, and
texts are never read as numbers here: that is the command line's work.
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Iterable
from typing import Any

from .errors import WrongTypeError


def whole(name: str, value: Any) -> int:
    """An int from any whole number, `12.0` included. Raises WrongTypeError."""
    is_number = isinstance(value, numbers.Real) and not _is_flag(value)
    if is_number and (isinstance(value, numbers.Integral) or float(value).is_integer()):
        return int(value)
    raise _wrong(name, value, "a whole number")


def real(name: str, value: Any) -> float:
    """A float from any real number. Raises WrongTypeError."""
    if isinstance(value, numbers.Real) and not _is_flag(value):
        try:
            return float(value)
        except OverflowError:  # a whole number or fraction beyond any float
            return math.inf if value == abs(value) else -math.inf
    raise _wrong(name, value, "a number")


def flag(name: str, value: Any) -> bool:
    """True or False. Raises WrongTypeError."""
    if _is_flag(value):
        return bool(value)
    raise _wrong(name, value, "True or False")


def text(name: str, value: Any) -> str:
    """Raises WrongTypeError unless it is a text, ValueError if it holds half a character."""
    if not isinstance(value, str):
        raise _wrong(name, value, "a text")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        half = value[error.start]
        raise ValueError(f"{name} cannot be encoded: {half!a} at character {error.start} is half of one") from None
    return str(value)


def texts(name: str, value: Any) -> tuple[str, ...]:
    """One text, several, or None for none. Empty ones say nothing and are left out. Raises WrongTypeError."""
    if value is None or isinstance(value, str):
        return (text(name, value),) if value else ()
    if not isinstance(value, Iterable) or isinstance(value, bytes):
        raise _wrong(name, value, "a text, or a list of texts")
    return tuple(found for each in value if (found := text(f"each of {name}", each)))


def _is_flag(value: Any) -> bool:
    kind = type(value)
    return isinstance(value, bool) or (kind.__module__ == "numpy" and kind.__name__ in ("bool", "bool_"))


def _wrong(name: str, value: Any, wanted: str) -> WrongTypeError:
    return WrongTypeError(f"{name} is {wanted}, not {value!r}")
