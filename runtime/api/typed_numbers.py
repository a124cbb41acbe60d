"""Numbers as people type them: `12`, `1e3` and `12.0` are the same whole number. No library is needed to read them."""

from __future__ import annotations

import math
import re


def whole_number(text: str) -> int:
    """Read a whole number. Raises ValueError if `text` is none."""
    text = text.strip()
    if re.fullmatch(r"[+-]?[0-9]{1,40}", text):
        return int(text)
    try:
        number = real_number(text)
    except ValueError:
        number = 0.5
    if not number.is_integer():
        raise ValueError(f"a whole number, not {text!r}")
    return int(number)


def real_number(text: str) -> float:
    """Read a finite number. Raises ValueError if `text` is none."""
    try:
        number = float(text)
    except ValueError:
        raise ValueError(f"a number, not {text!r}") from None
    if not math.isfinite(number):
        raise ValueError(f"a finite number, not {text!r}")
    return number
