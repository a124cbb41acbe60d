"""The page of all methods. `make methods`, or `python -m stratakv.runtime.cli.methods.page docs/METHODS.md`, makes anew
what it says of each.

What is made stands between `<!-- indexes -->` and `<!-- end -->`, and likewise for placements and codecs. All else in
the page is written by hand and stays.
"""

from __future__ import annotations

import sys
import textwrap
from pathlib import Path

from .measured import measured
from .method import KINDS, Kind, Method, method

_WIDTH = 120
_END = "<!-- end -->\n"


def with_methods(page: str) -> str:
    """The page with what is made of it made anew. Raises ValueError if it has no place for a kind."""
    for kind in KINDS:
        begin = f"<!-- {kind.plural} -->\n"
        before, has_begin, rest = page.partition(begin)
        _, has_end, after = rest.partition(_END)
        if not has_begin or not has_end:
            raise ValueError(
                f"the page has no place for {kind.plural}: {begin.strip()} and {_END.strip()}, a line each"
            )
        page = f"{before}{begin}\n{_made(kind)}\n\n{_END}{after}"
    return page


def _made(kind: Kind) -> str:
    """A table of the methods of a kind, and each of them in full."""
    some = [method(kind, name) for name in kind.names]
    table = ["| name | for | bytes | paper |", "|---|---|---|---|", *map(_row, some)]
    return "\n".join([f"{kind.note}\n", *table, *map(_in_full, some)])


def _row(one: Method) -> str:
    paper = f"[{one.paper}](https://arxiv.org/abs/{one.number})" if one.paper else ""
    return f"| [`{one.name}`](#{one.name}) | {_text(one.serves)} | {measured(one.kind, one.name).token:.4g} | {paper} |"


def _in_full(one: Method) -> str:
    """A method under a heading of its own."""
    items = [f"**{word}** {_text(said)}" for word, said in one.sections.items() if word not in ("For", "Paper")]
    items += [f"`{setting}`: {_text(setting.says)}" for setting in one.settings]
    lines = [_wrapped(f"{_text(one.summary)} (`{one.path}`)", ""), "", *(_wrapped(item, "- ") for item in items)]
    return "\n".join([f"\n### {one.name}\n", *lines])


def _text(said: str) -> str:
    """A docstring's words as Markdown: outside of code, stars and angles are no marks."""
    parts = said.split("`")
    parts[::2] = [part.replace("*", r"\*").replace("<", "&lt;") for part in parts[::2]]
    return "`".join(parts)


def _wrapped(text: str, bullet: str) -> str:
    lines = textwrap.wrap(text, _WIDTH - len(bullet), break_on_hyphens=False, break_long_words=False)
    return bullet + f"\n{' ' * len(bullet)}".join(lines)


def main(path: Path) -> None:
    """Make the page at `path` anew."""
    path.write_text(with_methods(path.read_text()))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
