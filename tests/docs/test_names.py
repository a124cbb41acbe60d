"""What the pages and docstrings name exists: every path, and every option of a command.

`docs/decisions/` tell what was so once; old names may stand there.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
import typer

from stratakv.runtime.cli.app import app

ROOT = Path(__file__).parents[2]
LIBRARY = ("runtime", "storage", "retrieval", "kernels", "examples")
FOLDERS = (*LIBRARY, "tests", "docs", "findings")
PAGES = [
    ROOT / "README.md",
    ROOT / "CHANGELOG.md",
    *sorted((ROOT / "docs").glob("*.md")),
    ROOT / "findings" / "README.md",
]
FINDINGS = sorted((ROOT / "findings").glob("*.sh"))
SOURCES = [path for folder in LIBRARY for path in sorted((ROOT / folder).rglob("*.py"))]

PATH = re.compile(rf"(?<![\w./~-])(?:{'|'.join(FOLDERS)})/[\w./*-]*\w[*/]?")
MODULE = re.compile(r"`(\w+\.py)`")
FLAG = re.compile(r"(?<![\w-])--[a-z][a-z0-9-]*\w")
ARROW = re.compile(r"--[^\n>]*-->")
OTHERS = {
    "--no-deps": "pip's",
    "docs/results/gpu/": "the folder that `make` puts a GPU's results into",
    "findings/NAME.sh": "stands for any of them",
}
"""What is named and not ours, or not there yet."""


def exists(path: str) -> bool:
    """A file or folder, or what a pattern or the number of a decision stands for."""
    decision = re.fullmatch(r"docs/decisions/\d{4}", path)
    return (ROOT / path).exists() or any(ROOT.glob(f"{path}-*.md" if decision else path))


def docstrings(source: str) -> Iterator[str]:
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            yield node.value.value


@cache
def texts() -> dict[str, str]:
    """What is read here, by its path: pages whole, the docstrings of a source, and what a finding says first."""
    found = {path: path.read_text() for path in PAGES}
    found |= {path: path.read_text().partition("\nset ")[0] for path in FINDINGS}
    found |= {path: "\n".join(docstrings(path.read_text())) for path in SOURCES}
    return {path.relative_to(ROOT).as_posix(): text for path, text in found.items()}


@cache
def options() -> set[str]:
    """Of every command, and of every script of ours."""
    found: set[str] = {"--help"}
    pending = [typer.main.get_command(app)]
    while pending:
        command = pending.pop()
        pending += getattr(command, "commands", {}).values()
        for parameter in command.params:
            found |= {*parameter.opts, *parameter.secondary_opts}
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "add_argument":
                found |= {arg.value for arg in node.args if isinstance(arg, ast.Constant)}
    return found


@cache
def modules() -> set[str]:
    return {path.name for folder in FOLDERS for path in (ROOT / folder).rglob("*.py")}


def unknown(text: str) -> set[str]:
    """What a text names that is not there."""
    found = {
        *(path for path in PATH.findall(text) if not exists(path)),
        *(name for name in MODULE.findall(text) if name not in modules()),
        *(flag for flag in FLAG.findall(ARROW.sub("", text)) if flag not in options()),
    }
    return found - OTHERS.keys()


def test_what_pages_and_docstrings_name_exists() -> None:
    found = {path: names for path, text in texts().items() if (names := unknown(text))}
    assert found == {}


def test_everything_is_looked_at() -> None:
    assert {"README.md", "docs/ARCHITECTURE.md", "runtime/__init__.py", "examples/chat.py"} <= texts().keys()
    assert {"--kv-dir", "--budget", "-p", "--temp", "--texts"} <= options()
    assert sum(len(PATH.findall(text)) for text in texts().values()) > 200
    assert sum(len(FLAG.findall(text)) for text in texts().values()) > 100


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("see `runtime/chat/chat.py`, `runtime/chat/` and runtime/chat.", set()),
        ("`runtime/chat.py` did it", {"runtime/chat.py"}),
        ("(docs/decisions/0002, `docs/decisions/9999`)", {"docs/decisions/9999"}),
        ("`docs/results/*.json` and `docs/results/*.jpeg`", {"docs/results/*.jpeg"}),
        ("https://example.org/tests/none.py and ../tests/none.py", set()),
        ("`app.py` has it, not `apps.py`", {"apps.py"}),
        ("`--kv-dir PATH`, --no-such-flag; a -- dash", {"--no-such-flag"}),
        ("begun --no-such-step and on--> ended", set()),
    ],
)
def test_a_seeded_name_is_found(text: str, names: set[str]) -> None:
    assert unknown(text) == names
