"""Renders a chat template and ends; run as a program of its own, never imported (see `template_render`).

A template comes with a model and is a small program. jinja2's sandbox keeps it from files and from Python, but
not from looping or growing for ever, so the kernel bounds this process: what it may take of processor and memory
is set before the template is looked at. Filters and functions are those that transformers gives to templates.

On standard input and output, JSON: {"template", "variables", "conversations", "most"} -> {"texts"} or {"error"}.
"""

import json
import math
import resource
import sys
import time
from datetime import datetime
from typing import Any

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.sandbox

SECONDS = 1
"""Of processor time; honest templates take milliseconds."""
MEMORY_BYTES = 512 << 20


class Generation(jinja2.ext.Extension):
    """`{% generation %}` marks replies for training; here it changes nothing."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Any) -> jinja2.nodes.Node:
        line = next(parser.stream).lineno
        return jinja2.nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True)).set_lineno(line)


def raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)


def to_json(
    value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def environment() -> jinja2.sandbox.ImmutableSandboxedEnvironment:
    made = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, jinja2.ext.loopcontrols]
    )
    made.filters["tojson"] = to_json
    made.globals["raise_exception"] = raise_exception
    made.globals["strftime_now"] = lambda format: datetime.now().strftime(format)
    return made


def rendered(template: str, variables: dict[str, Any], conversations: list[Any], most: int) -> dict[str, Any]:
    texts = []
    try:
        compiled = environment().from_string(template)
        for messages in conversations:
            pieces, length = [], 0
            for piece in compiled.generate(
                messages=messages, tools=None, documents=None, add_generation_prompt=True, **variables
            ):
                pieces.append(piece)
                length += len(piece)
                if length > most:
                    return {"error": f"makes more than {most} characters of a small conversation"}
            texts.append("".join(pieces))
    except Exception as error:  # whatever a template does wrong is told to the parent
        return {"error": f"{type(error).__name__}: {str(error)[:200]}"}
    return {"texts": texts}


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
