"""The statements in a model's `config.json` about positions, brought into one form (docs/decisions/0034).

transformers 4 wrote `rope_theta` and `rope_scaling`, 5 writes `rope_parameters`, for families with two tables one for
each kind of layer, and files in use have mixtures of these. transformers lets one of them go where another is there.
Here all that is said is put together: what is said twice must be the same, a kind of table or a name that is not known
is an error, and every number is bounded before anything is computed from it.

    config.json --read_rope--> tables as they are said --Rope.of--> tables with the family's sizes and defaults

Nothing here imports torch: stores are named by it, too (`identity`). `rotary` computes from it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..api.errors import ModelFileError
from .families import FAMILIES
from .family import EVERY_LAYER
from .numbers import BOUNDS, shown

NAMES = frozenset({
    "rope_scaling", "rope_parameters", "rope_theta", "partial_rotary_factor", "rope_local_base_freq",
    "original_max_position_embeddings",
})  # fmt: skip
"""The names in `config.json` that are about positions."""

Table = dict[str, Any]
"""`rope_type`, `rope_theta` and what belongs to that kind, as transformers 5 spells it."""

_OF_KIND: dict[str, frozenset[str]] = {
    "default": frozenset(),
    "linear": frozenset({"factor"}),
    "dynamic": frozenset({"factor"}),
    "yarn": frozenset({
        "factor", "attention_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim", "truncate",
    }),
    "llama3": frozenset({"factor", "low_freq_factor", "high_freq_factor"}),
    "longrope": frozenset({"factor", "attention_factor", "short_factor", "long_factor"}),
    "proportional": frozenset({"factor"}),
}  # fmt: skip
"""Kind of table -> what it is computed from, besides `_COMMON`."""
_REQUIRED = {
    "linear": ("factor",), "dynamic": ("factor",), "llama3": ("factor", "low_freq_factor", "high_freq_factor"),
    "longrope": ("short_factor", "long_factor"),
}  # fmt: skip
_COMMON = frozenset({"rope_type", "rope_theta", "partial_rotary_factor", "original_max_position_embeddings"})
_OTHER_NAMES = {"su": "longrope"}
"""Former names of kinds."""
_NO_EFFECT = frozenset({"finetuned", "max_position_embeddings", "mrope_interleaved", "mrope_section"})
"""Said in published files, and used by nobody; or of pictures, whose places have more than one number."""
_FROM_ORIGINAL = frozenset({"yarn", "llama3", "longrope"})
"""Kinds that are computed from the original length."""
_SWITCHED_ON = frozenset({"yarn", "linear", "dynamic"})
"""Kinds that people switch on in a finished model, by whose page the rest of `config.json` stays as it is."""
_LISTS = frozenset({"short_factor", "long_factor"})
_LEAST = {"rope_theta": 1.0, "factor": 1.0}
"""No number may be smaller; of others, none may be 0 or less."""
_GROWTHS = frozenset({family.query_growth for family in FAMILIES.values() if family.query_growth is not None})
_MOST = 1e15
_Said = Iterator[tuple[str, str, Any]]
"""The place of a statement in the file, its name, and its value."""


def read_rope(path: Path, family: str, settings: Mapping[str, Any]) -> dict[str, Table]:
    """The tables that `settings` of `config.json` ask for, by kind of layer or of `EVERY_LAYER`.

    Raises ModelFileError: statements that contradict each other, a kind that is not known or not this family's, a name
    or number that no such kind has.
    """
    found, known = {}, FAMILIES[family]
    for kind, theta in known.thetas.items():
        said = list(_said(path, family, settings, kind))
        table = _merged(path, iter(said))
        if all(value is None or place == "rope_theta" for place, _, value in said):
            table = {**known.usual_tables.get(kind, {}), **table}
        table.setdefault("rope_type", "default")
        if "yarn" not in known.rope_kinds and table["rope_type"] == "yarn" and "short_factor" in table:
            table["rope_type"] = "longrope"  # as Phi-3's first files have it
        table.setdefault("rope_theta", theta)
        if known.turned not in (None, 1.0):
            table.setdefault("partial_rotary_factor", known.turned)
        _check(path, family, table)
        found[kind] = table
    return found


def was_misread(family: str, settings: Mapping[str, Any]) -> bool:
    """True if versions before 0034 computed other positions than `settings` say, so that their KV is of no use."""
    scaling, parameters = (_object(settings.get(name)) for name in ("rope_scaling", "rope_parameters"))
    flat = {name: value for name, value in parameters.items() if not isinstance(value, dict) and value is not None}
    nested = [value for value in parameters.values() if isinstance(value, dict)]
    each = [scaling, parameters, *nested]
    kinds = {str(one.get("rope_type") or one.get("type") or "default") for one in each} - {"default"}
    if kinds & {"longrope", "su", "dynamic"} or (FAMILIES[family].turned is not None and kinds):
        return True
    is_original_beside = settings.get("original_max_position_embeddings") is not None
    is_original_inside = any("original_max_position_embeddings" in one for one in each)
    if kinds & _FROM_ORIGINAL and is_original_beside and not is_original_inside:
        return True
    if FAMILIES[family].has_tables_by_kind:
        return bool(flat) or any(one.get("truncate") is False for one in nested)
    return bool(scaling and flat)


@dataclass(frozen=True, slots=True)
class Rope:
    """The positions of one model."""

    tables: dict[str, Table]
    """Tables by kind of layer, or that of `EVERY_LAYER`."""
    head_dims: dict[str, int]
    """The width of the heads that each table turns."""
    max_positions: int
    """`max_position_embeddings`, with which some kinds compute."""
    window: int
    """The number of tokens that the model is meant for, which may be more than `max_positions`: see `_window`."""

    @classmethod
    def of(
        cls, path: Path, family: str, tables: Mapping[str, Table], *, head_dims: Mapping[str, int], max_positions: int
    ) -> Rope:
        """The positions with everything that the tables leave to the model's sizes filled in. `head_dims` are the
        widths of heads by table. Raises ModelFileError: lists that do not fit them."""
        full, original = {}, FAMILIES[family].original_positions or max_positions
        for kind, said in tables.items():
            table = dict(said)
            if table["rope_type"] in _FROM_ORIGINAL:
                table.setdefault("original_max_position_embeddings", original)
            if table["rope_type"] == "yarn":
                table.setdefault("factor", max(1.0, max_positions / table["original_max_position_embeddings"]))
            _check_width(path, table, head_dims[kind])
            full[kind] = table
        of_all = full.get("full_attention") or full[EVERY_LAYER]
        return cls(full, dict(head_dims), max_positions, _window(of_all, max_positions))

    def reach(self, length: int) -> int:
        """The reach of a text of `length` tokens, which says which tables turn all of it: 0 for those of a short text,
        otherwise the length of a text that has these tables."""
        found = 0
        for table in self.tables.values():
            if table["rope_type"] == "dynamic" and length > self.max_positions:
                return length
            if table["rope_type"] == "longrope" and table["short_factor"] != table["long_factor"]:
                original: int = table["original_max_position_embeddings"]
                found = max(found, original + 1) if length > original else found
        return found

    def reach_of_step(self, reach: int, length: int) -> int:
        """The reach that the KV of a text must have for a token to join that makes it `length` tokens long, if it has
        `reach` now. Dynamic tables change with every token: there stored KV stays as it is, as in transformers'
        cache."""
        return reach if self.is_dynamic else self.reach(length)

    @property
    def query_growth(self) -> tuple[float, int] | None:
        """Beta and the original length by which queries grow with their position (`Family.query_growth`)."""
        for table in self.tables.values():
            for name in _GROWTHS & table.keys():
                return float(table[name]), int(table["original_max_position_embeddings"])
        return None

    @property
    def is_dynamic(self) -> bool:
        return any(table["rope_type"] == "dynamic" for table in self.tables.values())

    def reach_at(self, reach: int, position: int) -> int:
        """The reach that turns one position of a text whose KV has `reach`. A token generated after the text for which
        the tables were made has the reach of the text that ends with it."""
        return reach if position < reach else self.reach(position + 1)

    def is_reach(self, reach: int, length: int) -> bool:
        """True if KV of `length` tokens may have `reach`."""
        return reach == 0 or (reach <= length and self.reach(reach) == reach)


def for_transformers(family: str, tables: Mapping[str, Table]) -> dict[str, Any]:
    """The settings with which transformers' configuration of the family describes the same positions."""
    each = {kind: _without_original(table) for kind, table in tables.items()}
    found: dict[str, Any] = {"rope_parameters": each.get(EVERY_LAYER, each)}
    original = tables.get(EVERY_LAYER, {}).get("original_max_position_embeddings")
    if FAMILIES[family].original_positions is not None and original is not None:
        found["original_max_position_embeddings"] = original  # its class reads it here only
    return found


def _without_original(table: Table) -> Table:
    dropped = set() if table["rope_type"] in _FROM_ORIGINAL else {"original_max_position_embeddings"}
    return {name: list(value) if name in _LISTS else value for name, value in table.items() if name not in dropped}


def _window(table: Table, max_positions: int) -> int:
    """The number of tokens a model is meant for. If its kind is one that people switch on in a finished model and the
    original length is stated, `max_position_embeddings` was not raised: then it is `factor` times the original length.
    For other kinds, whose files state both lengths, that holds only if `max_position_embeddings` was not raised."""
    kind, factor = table["rope_type"], table.get("factor")
    original = table.get("original_max_position_embeddings", max_positions if kind == "dynamic" else None)
    if factor is None or original is None or (kind not in _SWITCHED_ON and max_positions > original):
        return max_positions
    return max(max_positions, min(int(factor * original), BOUNDS["max_position_embeddings"]))


# What is said, and where


def _said(path: Path, family: str, settings: Mapping[str, Any], kind: str) -> _Said:
    """Yield all statements about the table of one kind of layer."""
    for name in ("rope_scaling", "rope_parameters"):
        found = settings.get(name)
        if found is not None and not isinstance(found, dict):
            raise ModelFileError(f"{path}: {name}: {shown(found)}, expected names and numbers")
        for inner, value in (found or {}).items():
            if isinstance(value, dict):
                if inner not in ("full_attention", "sliding_attention"):
                    raise ModelFileError(f"{path}: {name}: {shown(inner)} is no kind of layer that is known")
                if kind in (inner, EVERY_LAYER):
                    yield from ((f"{name}: {inner}", *item) for item in value.items())
            elif kind != "sliding_attention" or FAMILIES[family].sliding_theta == inner:
                yield name, inner, value
    theta = FAMILIES[family].sliding_theta if kind == "sliding_attention" else "rope_theta"
    yield theta, "rope_theta", settings.get(theta)
    for name in ("partial_rotary_factor", "original_max_position_embeddings"):
        yield name, name, settings.get(name)


def _merged(path: Path, said: _Said) -> Table:
    """One table of all statements. Raises ModelFileError where two contradict each other. A statement of the default
    kind counts as none."""
    table: Table = {}
    places: dict[str, str] = {}
    for place, said_name, said_value in said:
        name, value = "rope_type" if said_name == "type" else said_name, said_value
        if name == "rope_type" and isinstance(value, str):
            value = _OTHER_NAMES.get(value, value)
        if value is None or name in _NO_EFFECT or (name, value) == ("rope_type", "default"):
            continue
        if name in table and table[name] != value:
            raise ModelFileError(
                f"{path}: {place}: {said_name} is {shown(value)}, but {places[name]} says {shown(table[name])}; keep "
                "the one that is right"
            )
        table[name], places[name] = value, place
    return table


def _check(path: Path, family: str, table: Table) -> None:
    """Raise ModelFileError, which names what is wrong, unless every name belongs to the kind and every number is
    possible."""
    kind = table["rope_type"]
    known = FAMILIES[family].rope_kinds
    if not isinstance(kind, str) or kind not in known:
        raise ModelFileError(f"{path}: rope_type: {shown(kind)} is not supported; {family} has {', '.join(known)}")
    growth = FAMILIES[family].query_growth
    for name in sorted(table.keys() - _COMMON - _OF_KIND[kind] - {growth}):
        raise ModelFileError(f"{path}: {shown(name)}: {shown(table[name])}, which rope_type {kind} does not have")
    for name in _REQUIRED.get(kind, ()):
        if name not in table:
            raise ModelFileError(f"{path}: {name}: the file does not say it, and rope_type {kind} needs it")
    for name in () if growth is None else (growth, "original_max_position_embeddings"):
        if name not in table:
            raise ModelFileError(f"{path}: {name}: the file does not say it, and {family} needs it")
    for name, value in table.items():
        if name != "rope_type":
            _check_value(path, name, value)
    if kind == "llama3" and not table["low_freq_factor"] < table["high_freq_factor"]:
        low, high = table["low_freq_factor"], table["high_freq_factor"]
        raise ModelFileError(f"{path}: high_freq_factor: {high}, expected more than low_freq_factor, {low}")
    share = table.get("partial_rotary_factor", 1)
    if share != 1 and FAMILIES[family].turned is None and kind != "proportional":
        raise ModelFileError(f"{path}: partial_rotary_factor: {share}, but {family} turns its heads whole")


def _check_value(path: Path, name: str, value: Any) -> None:
    if name in _LISTS:
        if not isinstance(value, list) or not all(_is_number(item, 0) for item in value):
            raise ModelFileError(f"{path}: {name}: {shown(value)}, expected a list of numbers above 0")
    elif name == "truncate":
        if not isinstance(value, bool):
            raise ModelFileError(f"{path}: truncate: {shown(value)}, expected true or false")
    elif name == "original_max_position_embeddings":
        most = BOUNDS["max_position_embeddings"]
        if isinstance(value, bool) or not isinstance(value, int) or not 2 <= value <= most:
            raise ModelFileError(f"{path}: {name}: {shown(value)}, expected a whole number from 2 to {most}")
    elif name == "rope_theta":
        if not _is_number(value, 1) or value == 1:
            raise ModelFileError(f"{path}: {name}: {shown(value)}, expected a number above 1")
    elif name in _GROWTHS and value == 0 and not isinstance(value, bool):
        pass
    elif not _is_number(value, _LEAST.get(name, 0)):
        least = f"from {_LEAST[name]:g}" if name in _LEAST else "above 0"
        raise ModelFileError(f"{path}: {name}: {shown(value)}, expected a number {least}")


def _is_number(value: Any, least: float) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    if isinstance(value, float) and not math.isfinite(value):
        return False
    return 0 < value <= _MOST and value >= least


def _check_width(path: Path, table: Table, head_dim: int) -> None:
    width = rotary_width(table, head_dim)
    if width < (4 if table["rope_type"] == "dynamic" else 2):
        raise ModelFileError(f"{path}: partial_rotary_factor: turns {width} of a head's {head_dim} numbers, too few")
    for name in sorted(_LISTS & table.keys()):
        if len(table[name]) != (width + 1) // 2:
            raise ModelFileError(
                f"{path}: {name}: {len(table[name])} numbers, expected {(width + 1) // 2}: one for each pair that is "
                "turned"
            )


def rotary_width(table: Table, head_dim: int) -> int:
    """The number of elements of a head that are turned. A proportional table turns all, most of them by nothing."""
    return head_dim if table["rope_type"] == "proportional" else int(head_dim * table.get("partial_rotary_factor", 1.0))


def _object(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}
