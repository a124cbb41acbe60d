"""Values of settings as Python's own types: any value that means the same is taken, anything else is refused by name.

A number is any value that offers `__index__` or `__float__`: Python's, numpy's and pandas' scalars,
fractions, decimals, arrays and tensors without dimensions. Truth values, times and texts are no numbers, whatever they
offer: reading a typed text as a number is the command line's work.
"""

from __future__ import annotations

import math
import operator
import os
from collections.abc import Callable, Iterable, Mapping
from numbers import Rational
from pathlib import Path
from typing import Any, TypeVar

from .errors import WrongTypeError

Called = TypeVar("Called", bound=Callable[..., Any] | None)
DTYPES = ("float32", "bfloat16", "float16")
"""Names of the dtypes that a model may compute in and its cache be kept in."""
_MOST_BITS = 128
"""The most bits of a whole number. Python neither prints nor reads one of some thousand digits."""
_LONGEST = 100
"""The most characters of a value in a message."""


def whole(name: str, value: Any) -> int:
    """An int from any whole number, `12.0` included. Raises WrongTypeError, or ValueError for more than 128 bits."""
    number = _number(value)
    if number is None or not (isinstance(number, int) or number.is_integer()):
        raise _wrong(name, value, "a whole number")
    if int(number).bit_length() > _MOST_BITS:
        raise ValueError(f"{name} is a whole number of at most {_MOST_BITS} bits, not {shown(value)}")
    return int(number)


def real(name: str, value: Any) -> float:
    """A float from any real number, infinite if it is beyond all floats. Raises WrongTypeError."""
    number = _number(value)
    if number is None:
        raise _wrong(name, value, "a number")
    return _float(number)


def flag(name: str, value: Any) -> bool:
    """True or False. Raises WrongTypeError."""
    found = _single(value)
    if isinstance(found, bool):
        return found
    raise _wrong(name, value, "True or False")


def text(name: str, value: Any) -> str:
    """A text as Python's own `str`. Raises WrongTypeError for anything else, ValueError if it holds half a
    character."""
    found = _single(value)
    if not isinstance(found, str):
        raise _wrong(name, value, "a text")
    try:
        found.encode()
    except UnicodeEncodeError as error:
        half = found[error.start]
        raise ValueError(f"{name} cannot be encoded: {half!a} at character {error.start} is half of one") from None
    return str.__str__(found)  # str() would give the name of an enumeration's member, not its text


def named(name: str, value: Any) -> str:
    """A text, or torch's own object of that name: `torch.float32`, `torch.device("cpu")`. Raises as `text`."""
    kind = type(value)
    if kind.__module__ == "torch" and kind.__name__ in ("dtype", "device"):
        value = str(value).removeprefix("torch.")
    return text(name, value)


def texts(name: str, value: Any) -> tuple[str, ...]:
    """A tuple of one text, of several, or of none for None. Empty texts say nothing and are left out. Raises as
    `text`."""
    if value is None:
        return ()
    return tuple(found for each in several(name, value) if (found := text(f"each of {name}", each)))


def several(name: str, value: Any) -> list[Any]:
    """A list of one text, or of the items of a list or any other series. Raises WrongTypeError for anything else."""
    found = _single(value)
    if isinstance(found, str):
        return [found]
    try:
        if isinstance(value, Iterable) and not isinstance(value, bytes | bytearray | Mapping):
            return list(value)
    except TypeError:  # scalars of numpy and torch claim to be iterable
        pass
    raise _wrong(name, value, "a text or a list of texts")


def path(name: str, value: Any) -> str | Path:
    """A path: a text as it is, any other path as Python's own. Raises WrongTypeError for what is no path, ValueError
    for a path that no file can have."""
    if not isinstance(value, str | os.PathLike):
        raise _wrong(name, value, "a path")
    found = os.fsdecode(value)
    if not found:
        raise ValueError(f"{name} is a path, not an empty text")
    try:
        os.fsencode(found)
    except UnicodeEncodeError:
        raise ValueError(f"{name} is a path, and no file can be called {shown(found)}") from None
    if "\0" in found:
        raise ValueError(f"{name} is a path, and no file can be called {shown(found)}")
    if found.startswith("~") and os.path.expanduser(found) == found and not os.path.lexists(found):
        raise ValueError(f"{name} is {shown(found)}, but there is no such home folder")
    return str.__str__(value) if isinstance(value, str) else Path(found)


def called(name: str, value: Called) -> Called:
    """`value` unchanged if it can be called or is None. Raises WrongTypeError otherwise, before work that would end
    there."""
    if value is None or callable(value):
        return value
    raise _wrong(name, value, "a function")


def shown(value: Any) -> str:
    """A value as text for a message: on one line, and short, whatever it is."""
    try:
        found = " ".join(repr(value).split())
    except Exception:  # a number of too many digits, or a foreign object's own mistake
        found = f"{'a huge' if isinstance(value, int) else 'some'} {type(value).__name__}"
    return found if len(found) <= _LONGEST else f"{found[: _LONGEST - 3]}..."


def _number(value: Any) -> int | float | None:
    """The value as an int where it is whole, exactly, else as a float; None for a value that is no number."""
    found = _single(value)
    if isinstance(found, bool | str) or getattr(found, "shape", ()) != ():
        return None
    try:
        if hasattr(found, "__index__"):
            return operator.index(found)
        if isinstance(found, Rational) and found.denominator == 1:
            return int(found.numerator)
        return _float(found) if hasattr(found, "__float__") else None
    except (TypeError, ValueError):  # another unit, a symbol, a decimal that is no number
        return None


def _float(number: Any) -> float:
    try:
        return float(number)
    except OverflowError:  # a whole number or fraction beyond any float
        return math.inf if number > 0 else -math.inf


def _single(value: Any) -> Any:
    """The one value inside a scalar, array or tensor of another library; otherwise `value`."""
    if getattr(value, "shape", None) != () or not hasattr(value, "tolist"):
        return value
    if getattr(getattr(value, "dtype", None), "kind", "") in ("m", "M"):  # a time, which numpy would give as an int
        return None
    try:
        return value.tolist()
    except (RuntimeError, NotImplementedError):  # a tensor without values
        return None


def _wrong(name: str, value: Any, wanted: str) -> WrongTypeError:
    return WrongTypeError(f"{name} is {wanted}, not {shown(value)}")
