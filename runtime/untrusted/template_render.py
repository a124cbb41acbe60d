"""Rendering a chat template that came with a model, in a process that can neither hang nor grow.

Bounded: the template's size, the time (processor time of `template_child`, and a minute by the clock), the memory
(on Linux), the length of what comes out. Not bounded: a template decides the words around every message, and so
what the model believes it was told. Only jinja2's sandbox keeps it from files and from Python; nothing else
confines the process.
"""

from __future__ import annotations

import functools
import json
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

MAX_TEMPLATE = 256 << 10
"""The most characters of a template. Qwen3's has 4,200, Llama 3.1's 5,000."""
_MAX_ADDED = 64 << 10
"""The most characters that a template may add around a conversation."""
_CLOCK_SECONDS = 60


class TemplateFailedError(Exception):
    """The template cannot be compiled or rendered, or asks for too much. The message is safe to print."""


class Rendered(NamedTuple):
    """The texts of several conversations, each up to the place where a reply begins."""

    texts: tuple[str, ...]
    looked: tuple[str, ...] | None
    """The texts that the template looks for in a user's words. For words in which none of them occurs, the template
    does the same, trimming of blanks included. None: that cannot be told."""


@functools.lru_cache(maxsize=64)
def remembered(template: str, variables: tuple[tuple[str, str], ...], conversations: str) -> Rendered:
    """Render as `render`, but once: a template that tells the date keeps to the day it was first asked."""
    return render(template, variables, conversations)


def render(template: str, variables: tuple[tuple[str, str], ...], conversations: str) -> Rendered:
    """Render several `conversations` (JSON: a list of lists of messages) with a template.

    Raises TemplateFailedError.
    """
    if len(template) > MAX_TEMPLATE:
        raise TemplateFailedError(f"has {len(template)} characters, at most {MAX_TEMPLATE} are allowed")
    request = {
        "template": template, "variables": dict(variables), "conversations": json.loads(conversations),
        "most": _MAX_ADDED + 2 * len(conversations),
    }  # fmt: skip
    answer = _answer(request)
    if "error" in answer:
        raise TemplateFailedError(_one_line(answer["error"]))
    return Rendered(tuple(answer["texts"]), None if answer["looked"] is None else tuple(answer["looked"]))


def _answer(request: dict[str, Any]) -> dict[str, Any]:
    """The answer of `template_child` to a request."""
    child = [sys.executable, "-P", str(Path(__file__).with_name("template_child.py"))]
    try:
        done = subprocess.run(child, input=json.dumps(request), capture_output=True, text=True, timeout=_CLOCK_SECONDS)
    except subprocess.TimeoutExpired as error:
        raise TemplateFailedError(f"was not done after {_CLOCK_SECONDS} s") from error
    if done.returncode:
        raise TemplateFailedError(_why(done))
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def _why(done: subprocess.CompletedProcess[str]) -> str:
    if done.returncode < 0:
        return "takes too much time or memory for a small conversation"
    return _one_line((done.stderr.strip().splitlines() or ["cannot be rendered"])[-1])


def _one_line(text: str) -> str:
    return "".join(c if c.isprintable() else " " for c in text)[:300]
