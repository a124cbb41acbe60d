"""All methods, as their own files tell it: what one is for, where it is published, and what can be set.

A method's file has one form, whichever kind it is of:

    the module's docstring   one sentence, with the paper in brackets: `Votes of the last queries (SnapKV, arXiv ...).`
    the class's docstring    sections: a word at the beginning of a line, and what it says, indented. `Idea`, `For`
                             (when to take it), `State`, `Cost`, `Differs` from the paper, and others
    its `Options`            a docstring under each setting
"""

from __future__ import annotations

import ast
import inspect
import re
import textwrap
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from functools import cache
from itertools import pairwise
from typing import Any, NamedTuple

from ....retrieval.placement_registry import KEEP, MODES, PLACEMENTS, placement_spec
from ....retrieval.registry import AUTO, INDEXES, index_class
from ....storage.codecs.registry import ADAPTIVE, CODECS, codec_class

PAPER = re.compile(r"\s*\(([^()]*arXiv (\d{4}\.\d{4,5}))\)")
"""In the sentence that begins a module: (the paper, its number)."""


class Kind(NamedTuple):
    """One of the waists that methods are for."""

    name: str
    plural: str
    answers: str
    """The question that such a method answers."""
    flag: str
    """The option of `stratakv chat` that takes its spec."""
    takes: str
    """What the bytes of a token are that `measured` says."""
    note: str
    """What can be said beside the names of methods and their own settings."""
    names: tuple[str, ...]
    load: Callable[[str], tuple[type[Any], Any]]
    """Name -> class and default options."""


KINDS = (
    Kind(
        "index", "indexes", "which of the stored tokens does a step read?", "--index",
        "of each stored token, in memory",
        f"`auto` is `{AUTO}`.", tuple(sorted(INDEXES)), index_class,
    ),
    Kind(
        "placement", "placements", "which tokens of a text are worth a place near?", "--placement",
        "of each token that is kept, in memory",
        f"All have `keep={KEEP}` and `mode={MODES[0]}` (or `{MODES[1]}`) as well.", tuple(sorted(PLACEMENTS)),
        lambda name: placement_spec(name).load(),
    ),
    Kind(
        "codec", "codecs", "what do a page's bytes look like on disk?", "--codec",
        "of each token, on disk",
        f"`{ADAPTIVE}` is zstd, or int4 for the share of pages that the disk is too slow for.",
        tuple(CODECS), codec_class,
    ),
)  # fmt: skip


class Setting(NamedTuple):
    """A field of a method's `Options`."""

    name: str
    default: Any
    """A whole or real number."""
    says: str

    def __str__(self) -> str:
        return f"{self.name}={self.default:g}"


@dataclass(frozen=True, slots=True)
class Method:
    """What one method's file says."""

    kind: Kind
    name: str
    summary: str
    """One sentence."""
    paper: str
    """Name and arXiv number, or empty."""
    number: str
    """The arXiv number alone, or empty."""
    sections: dict[str, str]
    """Word -> what its section says, in one line."""
    settings: tuple[Setting, ...]
    path: str

    @property
    def serves(self) -> str:
        """When to take it."""
        return self.sections.get("For", "").removesuffix(".")


def called(name: str) -> list[Kind]:
    """The kinds that have a method of that name. Raises ValueError if none has. Imports no method."""
    found = [kind for kind in KINDS if name in kind.names]
    if not found:
        names = "; ".join(f"{kind.plural}: {', '.join(kind.names)}" for kind in KINDS)
        raise ValueError(f"no method is called {name!r}; {names}")
    return found


@cache
def method(kind: Kind, name: str) -> Method:
    """Read one method's file."""
    found, options = kind.load(name)
    module = inspect.getmodule(found)
    assert module is not None, f"{found} is of no module"
    sentence = first_sentence(module.__doc__ or "")
    paper = PAPER.search(sentence)
    says = dict(settings_told(type(options)))
    return Method(
        kind=kind,
        name=name,
        summary=PAPER.sub("", sentence),
        paper=paper[1] if paper else "",
        number=paper[2] if paper else "",
        sections=sections(found.__doc__ or ""),
        settings=tuple(Setting(one.name, one.default, says.get(one.name, "")) for one in fields(options)),
        path=module.__name__.removeprefix("stratakv.").replace(".", "/") + ".py",
    )


def first_sentence(text: str) -> str:
    """The first sentence of a docstring, in one line, with its full stop."""
    return re.split(r"(?<=\.)\s", " ".join(text.split()), maxsplit=1)[0]


def sections(text: str) -> dict[str, str]:
    """The sections of a class's docstring."""
    found: dict[str, list[str]] = {}
    lines: list[str] = []
    for line in inspect.cleandoc(text).splitlines():
        if line[:1].isupper():
            word, _, line = line.partition(" ")
            lines = found.setdefault(word, [])
        lines.append(line.strip())
    return {word: " ".join(filter(None, some)) for word, some in found.items()}


def settings_told(options: type[Any]) -> Iterator[tuple[str, str]]:
    """What stands under each field of a dataclass and of those it extends."""
    for one in reversed(options.__mro__[:-1]):
        (tree,) = ast.parse(textwrap.dedent(inspect.getsource(one))).body
        assert isinstance(tree, ast.ClassDef)
        for field, under in pairwise(tree.body):
            if isinstance(field, ast.AnnAssign) and isinstance(under, ast.Expr) and isinstance(field.target, ast.Name):
                yield field.target.id, " ".join(str(ast.literal_eval(under.value)).split())
