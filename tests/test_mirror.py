"""Tests mirror the tree: `storage/disk/record.py` is tested by `tests/storage/disk/test_record.py`.

Where one file would be too long, others continue its name (`test_repl_lines.py`). Beside the mirror stand promises that
no single module keeps: `whole/` (conversations and commands across all rooms), `versions/` (what other versions wrote),
`hostile/` (what attackers write), `faults/` (what disks, processes and machines do), `docs/` (what pages say), `gpu/`
and `compare/` (what needs a device, or llama.cpp). A package is tested by `test_<package>.py` beside its folder.
"""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
from places import ROOT, TESTS

FOLDERS = ("runtime", "storage", "retrieval", "kernels")


def behaves(tree: ast.AST) -> bool:
    """Whether some function does more than say what it would: protocols, data and tables have nothing to test."""
    bodies = [node.body for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
    return any(not isinstance(statement, ast.Expr | ast.Raise) for body in bodies for statement in body)


def modules() -> dict[str, Path]:
    """Module, without `stratakv` -> where its test file is if it has one of its own."""
    found = {}
    for folder in FOLDERS:
        for path in sorted((ROOT / folder).rglob("*.py")):
            if behaves(ast.parse(path.read_text())):
                name = path.parent if path.name == "__init__.py" else path.with_suffix("")
                name = name.relative_to(ROOT)
                found[".".join(name.parts)] = TESTS / name.parent / f"test_{name.name}.py"
    return found


def test_no_file_is_longer_than_a_reader_is_patient() -> None:
    lines = {path: len(path.read_text().splitlines()) for folder in FOLDERS for path in (ROOT / folder).rglob("*.py")}
    assert {path.relative_to(ROOT).as_posix(): count for path, count in lines.items() if count > 400} == {}


def test_each_module_that_does_something_has_its_test() -> None:
    assert sorted(module for module, own in modules().items() if not own.exists()) == []


@pytest.mark.parametrize("folder", ["runtime", "storage", "retrieval"])
def test_each_test_file_is_named_after_a_module(folder: str) -> None:
    there = [
        ROOT / path.relative_to(TESTS).parent / path.stem.removeprefix("test_")
        for path in (TESTS / folder).rglob("test_*.py")
    ]
    names = {path.parent / path.stem for path in (ROOT / folder).rglob("*.py")}
    names |= {path.parent for path in (ROOT / folder).rglob("__init__.py")}
    assert [str(one) for one in there if not any(one == name or is_continued(one, name) for name in names)] == []


def is_continued(test: Path, module: Path) -> bool:
    return test.parent == module.parent and test.name.startswith(f"{module.name}_")


def test_a_module_without_a_test_is_seen() -> None:
    assert behaves(ast.parse("def f():\n    'Doc.'\n    return 1"))
    assert not behaves(ast.parse("class P(Protocol):\n    def f(self) -> int: ...\nX = 1"))
    assert not behaves(ast.parse("def f():\n    'Doc.'\n    raise NotImplementedError"))
    assert modules()["storage.disk.record"] == TESTS / "storage" / "disk" / "test_record.py"
    assert modules()["runtime.evaluation.tasks"] == TESTS / "runtime" / "evaluation" / "test_tasks.py"
