"""Positions: from a file's `rope.*` keys and factors to `rope_parameters`, as transformers' functions take them.

llama.cpp scales an angle in up to three ways at once: it divides by the factor that a tensor has for its frequency,
then by `rope.scaling.factor` (or mixes with that, for YaRN), and multiplies cos and sin by an attention factor.
transformers has a name for the usual combinations. All others that do not depend on YaRN's ramp are LongRoPE's: a list
of divisors, one for each frequency, and an attention factor. Llama 3's own scaling is stated so as well: its files hold
nothing but the divisors, and so no rounding comes between.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np

from ...api.errors import ModelFileError
from ...untrusted.numbers import BOUNDS
from .container import Contents
from .number_types import values
from .said import Said

FREQUENCIES = "rope_freqs.weight"
SHORT, LONG = "rope_factors_short.weight", "rope_factors_long.weight"
TENSORS = (FREQUENCIES, SHORT, LONG)
_KINDS = ("none", "linear", "yarn", "longrope")
_MAX_THETA = _MAX_BETA = 1e15
_STRETCHES = ("rope.scaling.factor", "rope.scale_linear", "rope.scaling.attn_factor")
_STOPS = 1e20
"""Divided by this, no frequency turns anything in a text of any length."""


def read_rope(said: Said, contents: Contents, rotary: int, context: int, *, lists_only: bool = False) -> dict[str, Any]:
    """Make `rope_parameters` of the layers that are scaled.

    Args:
        rotary: number of elements of a head that are rotated.
        context: `context_length`: the original length where the file states none.
        lists_only: the family's class knows no kind but LongRoPE.
    """
    theta = _theta(said, "rope.freq_base")
    kind = said.text("rope.scaling.type", "linear")
    if kind not in _KINDS:
        raise said.refuse("rope.scaling.type", kind, f"known are {', '.join(_KINDS)}")
    factor = _factor(said) if kind != "none" else 1.0
    attention = _attention(said)
    short, long = _divisors(contents, rotary // 2)
    original = _original(said, context, is_a_limit=short != long)
    plain = {"rope_theta": theta}
    if kind == "yarn" and factor != 1:
        if lists_only:
            raise said.refuse("rope.scaling.type", kind, "the family has LongRoPE alone")
        if short is not None:
            raise said.refuse("rope.scaling.type", kind, "the file has divisors of its own for every frequency")
        return {"rope_type": "yarn", **plain, "factor": factor, "original_max_position_embeddings": original,
                **_yarn(said, factor, attention)}  # fmt: skip
    if short is None and attention == 1 and not (lists_only and factor != 1):
        return {"rope_type": "linear", **plain, "factor": factor} if factor != 1 else {"rope_type": "default", **plain}
    ones = [1.0] * (rotary // 2)
    lists = [[one * factor for one in each or ones] for each in (short, long)]
    return _by_lists(theta, attention, context, original, *lists)


def plain_rope(said: Said, name: str, rotary: int, context: int) -> dict[str, Any]:
    """Make `rope_parameters` of layers that are not stretched, with a base frequency of their own. They share the
    factor of cos and sin."""
    theta, attention = _theta(said, name), _attention(said)
    if attention == 1:
        return {"rope_type": "default", "rope_theta": theta}
    ones = [1.0] * (rotary // 2)
    return _by_lists(theta, attention, context, context, ones, ones)


def unstretched_rope(said: Said, contents: Contents, rotary: int, context: int) -> dict[str, Any]:
    """Make `rope_parameters` of families whose positions are never stretched. Raises ModelFileError if they are."""
    plain = read_rope(said, replace(contents, tensors={}), rotary, context)
    if plain["rope_type"] != "default":
        name = next(name for name in _STRETCHES if said.has(name))
        raise said.refuse(name, said.value(name), "the family's positions are not stretched")
    return plain


def scattered_rope(said: Said, contents: Contents, width: int, context: int) -> dict[str, Any]:
    """Make `rope_parameters` of layers whose frequencies are those of a whole head `width`, the last of which the file
    stops: it divides them by so much that nothing turns."""
    plain = unstretched_rope(said, contents, width, context)
    if FREQUENCIES not in contents.tensors:
        raise ModelFileError(f"{contents.path}: {FREQUENCIES}: the file does not have it; is it complete?")
    divisors = _read(contents, FREQUENCIES, width // 2)
    turned = sum(one == 1 for one in divisors)
    if turned == 0 or divisors[:turned] != [1.0] * turned or min(divisors[turned:], default=_STOPS) < _STOPS:
        raise ModelFileError(f"{contents.path}: {FREQUENCIES}: expected ones, and then numbers from {_STOPS:g}; take "
                             "another file of this model")  # fmt: skip
    return {**plain, "rope_type": "proportional", "partial_rotary_factor": share(2 * turned, width)}


def share(part: int, whole: int) -> float:
    """The share part / whole, from which `int(whole * share)` makes `part` again."""
    found = part / whole
    return found if int(whole * found) == part else math.nextafter(found, 1.0)


def _by_lists(
    theta: float, attention: float, context: int, original: int, short: list[float], long: list[float]
) -> dict[str, Any]:
    original = context if short == long else original
    return {
        "rope_type": "longrope", "rope_theta": theta, "factor": max(1.0, context / original),
        "attention_factor": attention, "original_max_position_embeddings": original, "short_factor": short,
        "long_factor": long,
    }  # fmt: skip


def _theta(said: Said, name: str) -> float:
    found = said.number(name, 10_000.0)
    if not 1 < found <= _MAX_THETA:
        raise said.fail(name, found, f"expected a number above 1 and up to {_MAX_THETA:g}")
    return found


def _attention(said: Said) -> float:
    """The factor of cos and sin in every layer."""
    found = said.number("rope.scaling.attn_factor", 1.0)
    if not 0 < found < 1000:
        raise said.fail("rope.scaling.attn_factor", found, "expected a number above 0 and below 1000")
    return found


def _original(said: Said, context: int, *, is_a_limit: bool) -> int:
    """The original context length. llama.cpp takes 0 for none, which cannot be where another table is used beyond
    it."""
    name, most = "rope.scaling.original_context_length", BOUNDS["max_position_embeddings"]
    found = said.whole(name, default=0)
    if not said.has(name) or (found == 0 and not is_a_limit):
        return context
    if not 2 <= found <= most:
        raise said.fail(name, found, f"expected a whole number from 2 to {most}")
    return found


def _factor(said: Said) -> float:
    name = "rope.scaling.factor" if said.has("rope.scaling.factor") else "rope.scale_linear"
    found = said.number(name, 1.0)
    if found == 0:  # llama.cpp takes 0 for no factor
        return 1.0
    if not 1 <= found <= 1 << 20:
        raise said.fail(name, found, "expected a number from 1")
    return found


def _yarn(said: Said, factor: float, attention: float) -> dict[str, float]:
    """The numbers that differ from YaRN's usual ones. The attention factor of the file multiplies the one that YaRN
    has."""
    found = {}
    for ours, theirs in (("beta_fast", "yarn_beta_fast"), ("beta_slow", "yarn_beta_slow")):
        if said.has(f"rope.scaling.{theirs}"):
            found[ours] = said.number(f"rope.scaling.{theirs}")
            if not 0 < found[ours] <= _MAX_BETA:
                problem = f"expected a number above 0 and up to {_MAX_BETA:g}"
                raise said.fail(f"rope.scaling.{theirs}", found[ours], problem)
    if attention != 1:
        found["attention_factor"] = attention * (0.1 * math.log(factor) + 1)
    return found


def _divisors(contents: Contents, count: int) -> tuple[list[float] | None, list[float] | None]:
    """The divisors of each frequency for short texts and for long ones; equal if the file makes no difference, None if
    it divides by nothing."""
    there = [name for name in TENSORS if name in contents.tensors]
    if not there:
        return None, None
    if there not in ([FREQUENCIES], [SHORT, LONG]):
        raise ModelFileError(
            f"{contents.path}: {', '.join(there)}: expected {FREQUENCIES} alone, or {SHORT} and {LONG}; "
            "take another file of this model"
        )
    short, *rest = [_read(contents, name, count) for name in there]
    long = rest[0] if rest else short
    return (None, None) if short == long == [1.0] * count else (short, long)


def _read(contents: Contents, name: str, count: int) -> list[float]:
    tensor = contents.tensors[name]
    if tensor.elements != count:
        raise ModelFileError(
            f"{contents.path}: {name}: {tensor.elements} numbers for {count} frequencies; take another file"
        )
    found = np.concatenate([rows.ravel() for rows in values(tensor)])
    if not np.isfinite(found).all() or not (found > 0).all():
        raise ModelFileError(f"{contents.path}: {name}: expected finite numbers above 0; take another file")
    return [float(one) for one in found]
