"""`stratakv methods`: all indexes, placements and codecs, what each is for and what it takes."""

from __future__ import annotations

import json
import shutil
import textwrap
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from .methods.method import Kind, Method

_NARROWEST, _WIDEST = 60, 140
_MARGIN = 10
"""Cells that words before a method's sections take."""


def methods(
    name: Annotated[
        str | None, typer.Argument(help="Only this method, and all that is said of it.", metavar="NAME")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """What finds, keeps near and stores tokens: all indexes, placements and codecs, or one in full."""
    from .methods.method import KINDS, called, method

    if name is None:
        found = [(kind, [method(kind, one) for one in kind.names]) for kind in KINDS]
    else:
        found = [(kind, [method(kind, name)]) for kind in called(name)]
    if as_json:
        print(json.dumps(_as_data(found), indent=2))
    elif name is None:
        _show_all(found)
    else:
        print("\n\n".join(_in_full(one) for _, some in found for one in some))


def _as_data(found: list[tuple[Kind, list[Method]]]) -> dict[str, Any]:
    from .methods.measured import DIM, DTYPE, KV_BYTES, measured

    return {"head_dim": DIM, "dtype": DTYPE, "kv_bytes": KV_BYTES} | {
        kind.plural: [
            {
                "name": one.name,
                "summary": one.summary,
                "for": one.serves,
                "paper": one.paper or None,
                "token_bytes": measured(kind, one.name).token,
                "fixed_bytes": measured(kind, one.name).fixed,
                "settings": {setting.name: setting.default for setting in one.settings},
                "sections": one.sections,
                "path": one.path,
            }
            for one in some
        ]
        for kind, some in found
    }


def _show_all(found: list[tuple[Kind, list[Method]]]) -> None:
    """A line each, or more where the terminal is narrow."""
    from .methods.measured import measured

    longest = max(len(one.name) for _, some in found for one in some)
    for kind, some in found:
        print(_wrapped(f"{kind.answers} Bytes are {kind.takes}.", f"{kind.plural}: "), end="\n\n")
        for one in [None, *some]:
            if one is None:
                cells = "", "bytes", "arXiv", f"{kind.flag} NAME:setting=value"
            else:
                settings = f" [{' '.join(map(str, one.settings))}]" if one.settings else ""
                cells = one.name, f"{measured(kind, one.name).token:.4g}", one.number, one.serves + settings
            first = f"  {cells[0]:{longest}}  {cells[1]:>5}  {cells[2]:10}  "
            print(_wrapped(cells[3], first))
        print(f"\n{_wrapped(kind.note.replace('`', ''), '  ')}\n")
    print(_wrapped(f"Bytes are {_beside()}. `stratakv methods NAME` says more of one.", ""))


def _in_full(one: Method) -> str:
    from .methods.measured import measured

    taken = measured(one.kind, one.name)
    fixed = f", and {taken.fixed:,.0f} for each sequence" if taken.fixed >= 1 else ""
    said = one.sections | {
        "Paper": one.sections.get("Paper", one.paper),
        "Bytes": f"{taken.token:.4g} {one.kind.takes}{fixed}; {_beside()}.",
        "Spec": f"{one.kind.flag} {':'.join([one.name, *map(str, one.settings)])}",
    }
    lines = [f"{one.name}, one of the {one.kind.plural} ({one.path})", "", _wrapped(one.summary, ""), ""]
    lines += [_wrapped(text, f"{word:<{_MARGIN}}") for word, text in said.items() if text]
    lines += [_wrapped(f"{setting}: {setting.says}", " " * _MARGIN) for setting in one.settings]
    return "\n".join(lines)


def _beside() -> str:
    from .methods.measured import DIM, DTYPE, KV_BYTES

    return f"per KV head of {DIM} channels in {DTYPE}, where a token's keys and values take {KV_BYTES}"


def _wrapped(text: str, first: str) -> str:
    """`text` behind `first`, and under itself where it does not fit one line."""
    width = min(max(shutil.get_terminal_size().columns, _NARROWEST), _WIDEST)
    room = max(width - len(first), _NARROWEST // 2)
    lines = textwrap.wrap(text, room, break_on_hyphens=False, break_long_words=False) or [""]
    return "\n".join([(first + lines[0]).rstrip(), *(" " * len(first) + line for line in lines[1:])])
