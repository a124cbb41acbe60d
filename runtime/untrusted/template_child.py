"""Renders a chat template and ends; run as a program of its own, never imported (see `template_render`).

A template comes with a model and is a small program. jinja2's sandbox keeps it from files and from Python, but
not from looping or growing for ever, so the kernel bounds this process: what it may take of processor and memory
is set before the template is looked at. Filters and functions are those that transformers gives to templates.

On standard input and output, JSON: {"template", "variables", "conversations", "most"} -> {"texts", "looked"} or
{"error"}.
"""

import functools
import json
import math
import resource
import sys
import time
import types
from collections.abc import Iterable, Iterator
from datetime import datetime
from typing import Any

import jinja2
import jinja2.compiler
import jinja2.ext
import jinja2.nodes
import jinja2.runtime
import jinja2.sandbox
import jinja2.utils

SECONDS = 1
"""Seconds of processor time; honest templates take milliseconds."""
MEMORY_BYTES = 512 << 20
MOST_LOOKED = 4096
"""The most characters of all texts that a template looks for; honest templates look for a `</think>`."""


class Generation(jinja2.ext.Extension):
    """`{% generation %}` marks replies for training; here it changes nothing."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Any) -> jinja2.nodes.Node:
        line = next(parser.stream).lineno
        return jinja2.nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True)).set_lineno(line)


class Words(str):
    """A person's words. They note which texts a template looks for in them; writing them down and trimming blanks is
    not noted. A text made of words, alone or beside others, is words too."""

    _looked: set[str] = set()  # noqa: RUF012
    _is_read = False
    """True once something was asked whose answer depends on more than the texts that are looked for."""

    def __str__(self) -> str:
        return self

    def __bool__(self) -> bool:
        return str.__len__(self) > 0

    def __iter__(self) -> Iterator[str]:
        Words._is_read = True  # once a character is asked for, not where a template asks whether there are any
        yield from str.__iter__(self)

    def strip(self, chars: str | None = None, /) -> "Words":
        return self._trimmed("strip", chars)

    def lstrip(self, chars: str | None = None, /) -> "Words":
        return self._trimmed("lstrip", chars)

    def rstrip(self, chars: str | None = None, /) -> "Words":
        return self._trimmed("rstrip", chars)

    def _trimmed(self, name: str, chars: str | None) -> "Words":
        Words._is_read |= bool(chars and chars.strip())
        return Words(getattr(str, name)(self, chars))

    @classmethod
    def looked(cls) -> list[str] | None:
        """The texts that a template looks for; None if it depends on the words themselves what the template makes of
        them."""
        is_much = sum(map(len, cls._looked)) > MOST_LOOKED
        return None if cls._is_read or is_much else sorted(cls._looked)


def _of_words(made: Any) -> Any:
    if isinstance(made, list | tuple):
        return type(made)(map(_of_words, made))
    return Words(made) if isinstance(made, str) else made


def _has_words(value: Any) -> bool:
    if isinstance(value, dict):
        return any(map(_has_words, value.values()))
    return any(map(_has_words, value)) if isinstance(value, list | tuple) else isinstance(value, Words)


def _noting(name: str, *, is_search: bool) -> Any:
    original = getattr(str, name)

    def noting(self: Words, *arguments: Any, **named: Any) -> Any:
        sought = arguments[0] if arguments else None
        many = sought if isinstance(sought, tuple) else (sought,)
        if is_search and all(isinstance(one, str) for one in many):
            Words._looked |= {one for one in many if one}
        elif not (name in _COMPARING and is_search):
            Words._is_read = True
        return _of_words(original(self, *arguments, **named))

    noting.__name__ = name
    return noting


_COMPARING = ("__eq__", "__ne__")
_SEARCHING = (
    "startswith", "endswith", "split", "rsplit", "partition", "rpartition", "replace", "find", "rfind", "index",
    "rindex", "count", "removeprefix", "removesuffix", "__contains__", *_COMPARING,
)  # fmt: skip
_READING = (
    "upper", "lower", "title", "capitalize", "casefold", "swapcase", "splitlines", "translate", "expandtabs", "encode",
    "center", "ljust", "rjust", "zfill", "format", "join", "__getitem__", "__len__", "__hash__", "__lt__", "__le__",
    "__gt__", "__ge__", "__mod__", *(name for name in dir(str) if name.startswith("is")),
)  # fmt: skip
for _name in (*_SEARCHING, *_READING):
    setattr(Words, _name, _noting(_name, is_search=_name in _SEARCHING))


_WRITING = {"trim", "string", "default", "d", "replace"}
"""Filters that do no more to words than the words' own methods note."""


def _reading(apply: Any) -> Any:
    """Wrap a filter so that it notes when it is given words."""

    @functools.wraps(apply)
    def noting(*arguments: Any, **named: Any) -> Any:
        listed = [list(one) if isinstance(one, types.GeneratorType) else one for one in arguments]
        of_words = [one for item in listed for one in (item if isinstance(item, list) else [item])]
        Words._is_read |= any(isinstance(one, Words) for one in of_words)
        return apply(*listed, **named)

    return noting


class Code(jinja2.compiler.CodeGenerator):
    """Makes `~` join as the environment does."""

    def visit_Concat(self, node: jinja2.nodes.Concat, frame: Any) -> None:
        self.write("environment.concat((")
        for one in node.nodes:
            self.visit(one, frame)
            self.write(", ")
        self.write("))")


class Environment(jinja2.sandbox.ImmutableSandboxedEnvironment):
    """The environment that transformers has, except that a text made of words is words."""

    code_generator_class = Code
    intercepted_binops = frozenset({"+", "*", "%"})

    @staticmethod
    def concat(pieces: Iterable[Any]) -> str:
        made = [str(piece) for piece in pieces]
        text = "".join(made)
        return Words(text) if _has_words(made) else text

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        made = super().call_binop(context, operator, left, right)
        if not _has_words((left, right)):
            return made
        Words._is_read |= operator == "%"
        return _of_words(made)

    def call(self, context: Any, called: Any, /, *arguments: Any, **named: Any) -> Any:
        is_of_words = isinstance(getattr(called, "__self__", None), Words)
        keeps = isinstance(called, jinja2.runtime.Macro) or called in (dict, jinja2.utils.Namespace)
        if not is_of_words and not keeps:
            Words._is_read |= _has_words((*arguments, *named.values()))
        return super().call(context, called, *arguments, **named)


def raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)


def to_json(
    value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
) -> str:
    Words._is_read |= _has_words(value)  # quotes and line breaks in them are written otherwise
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def environment() -> Environment:
    made = Environment(trim_blocks=True, lstrip_blocks=True, extensions=[Generation, jinja2.ext.loopcontrols])
    made.filters = {name: kept if name in _WRITING else _reading(kept) for name, kept in made.filters.items()}
    made.filters["tojson"] = to_json
    made.globals["raise_exception"] = raise_exception
    made.globals["strftime_now"] = lambda format: datetime.now().strftime(format)
    return made


def rendered(template: str, variables: dict[str, Any], conversations: list[Any], most: int) -> dict[str, Any]:
    texts = []
    Words._looked, Words._is_read = set(), False
    try:
        compiled = environment().from_string(template)
        for messages in conversations:
            for message in messages:
                if message["role"] == "user":
                    message["content"] = Words(message["content"])
            pieces, length = [], 0
            for piece in compiled.generate(
                messages=messages, tools=None, documents=None, add_generation_prompt=True, **variables
            ):
                pieces.append(piece)
                length += str.__len__(piece)  # a call that words do not note
                if length > most:
                    return {"error": f"makes more than {most} characters of a small conversation"}
            texts.append("".join(pieces))
    except Exception as error:  # whatever a template does wrong is told to the parent
        return {"error": f"{type(error).__name__}: {str(error)[:200]}"}
    return {"texts": texts, "looked": Words.looked()}


def main() -> None:
    request = json.load(sys.stdin)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    seconds = math.ceil(time.process_time() + SECONDS)
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
    if sys.platform == "linux":  # elsewhere processes map more than they use
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    json.dump(rendered(**request), sys.stdout)


if __name__ == "__main__":
    main()
