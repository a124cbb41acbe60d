"""Nothing public without a caller in the product: what nobody calls is deleted, or listed here with its reason.

Public is a function, class or method without an underscore. Called is what the library or the examples mention: as a
name, behind a dot, or as a text that is a name and nothing else, as registries have it. Mentions inside the thing
itself, in `import` and in `__all__` do not count, nor do tests: they would keep alive what only they use. Names are
compared as they are written, so a method passes where another class has one of that name that is called.
"""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PRODUCT = ("kernels", "storage", "retrieval", "runtime", "examples")
Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef

ON_THE_GPU = "for decode that stays on the GPU"
OVERRIDES = "called by the library whose class this one extends"
COMMAND = "a command: its decorator hands it to the library that parses options"
ALLOWED = {
    "runtime/api/progress.py: eta_s": "of what `on_progress` is told: for callers of the library",
    "runtime/bench/llama_c.py: tokenize": "of the one binding to llama.cpp, whose tokens `make compare` compares",
    "runtime/cli/one_line.py: invoke": OVERRIDES,
    "runtime/model/decoder.py: reset_parameters": OVERRIDES,
    "runtime/model/llama_config.py: validate_architecture": OVERRIDES,
    "runtime/model/products.py: reset_parameters": OVERRIDES,
    "runtime/model/rotary.py: standardize_rope_params": OVERRIDES,
    "runtime/untrusted/template_child.py: call_binop": OVERRIDES,
    "runtime/untrusted/template_child.py: concat": OVERRIDES,
    "runtime/untrusted/template_child.py: visit_Concat": OVERRIDES,
    "runtime/cli/sessions_command.py: sessions_gc": COMMAND,
    "runtime/cli/sessions_command.py: sessions_list": COMMAND,
    "runtime/cli/sessions_command.py: sessions_rm": COMMAND,
    "runtime/cli/sessions_command.py: sessions_show": COMMAND,
    "runtime/cli/sessions_command.py: sessions_verify": COMMAND,
}
"""What stays though nobody in the product calls it, and why."""


def definitions(tree: ast.AST) -> Iterator[Definition]:
    """Public functions and classes of a module, and public methods of its classes, private ones included."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, Definition):
            if not node.name.startswith("_"):
                yield node
            if isinstance(node, ast.ClassDef):
                yield from definitions(node)


def mentions(tree: ast.AST, *, texts: bool = True) -> Counter[str]:
    """How often each name is mentioned. `texts`: also by a text that is that name."""
    found: Counter[str] = Counter()
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            found.subtract(mentions(node.value, texts=texts))
        elif isinstance(node, ast.Name):
            found[node.id] += 1
        elif isinstance(node, ast.Attribute):
            found[node.attr] += 1
        elif texts and isinstance(node, ast.Constant) and isinstance(node.value, str):
            found[node.value] += 1
    return found


def uncalled(sources: dict[str, str]) -> set[str]:
    """`path: name` of everything public in the sources that none of them mentions.

    Args:
        sources: by path. Texts of an `__init__.py` do not count, but for the library's own: its names are for users.
    """
    trees = {path: ast.parse(source) for path, source in sources.items()}
    everywhere: Counter[str] = Counter()
    for path, tree in trees.items():
        everywhere.update(mentions(tree, texts=path == "runtime/__init__.py" or not path.endswith("__init__.py")))
    return {
        f"{path}: {node.name}" for path, tree in trees.items() for node in definitions(tree)
        if everywhere[node.name] == mentions(node)[node.name] and not is_reference(path, node)
    }  # fmt: skip


def is_reference(path: str, node: Definition) -> bool:
    """A kernel's plain form, which its tests compare the fast ones with."""
    return path.startswith("kernels/") and node.name.endswith("_reference")


def test_everything_public_has_a_caller() -> None:
    files = [path for folder in PRODUCT for path in sorted((ROOT / folder).rglob("*.py"))]
    found = uncalled({path.relative_to(ROOT).as_posix(): path.read_text() for path in files})
    assert found - ALLOWED.keys() == set(), "delete it, or say above why it stays"
    assert ALLOWED.keys() - found == set(), "it has a caller, or is gone: take it off the list"


CALLED = "class Store:\n    def read(self):\n        return used()\n\ndef used():\n    return 1\n\nStore().read()\n"


@pytest.mark.parametrize(
    ("more", "found"),
    [
        ("", set()),
        ("def dead():\n    return 1\n", {"dead"}),
        ("def again(n):\n    return again(n - 1)\n", {"again"}),
        ("class Dead:\n    def read(self): ...\n", {"Dead"}),
        ("class _Private:\n    def dead(self): ...\n_Private()\n", {"dead"}),
        ("def _private(): ...\n", set()),
        ("from .other import dead\n__all__ = ['dead']\ndef dead(): ...\n", {"dead"}),
        ("class Listed: ...\nKINDS = {'listed': 'Listed'}\n", set()),
    ],
)
def test_a_seeded_name_without_a_caller_is_found(more: str, found: set[str]) -> None:
    assert uncalled({"storage/a.py": CALLED, "storage/b.py": more}) == {f"storage/b.py: {name}" for name in found}


def test_names_that_are_handed_on_are_not_called() -> None:
    exported = {"storage/__init__.py": "__all__ = ['dead']\n_NAMES = {'b': ['dead']}\n"}
    assert uncalled({"storage/b.py": "def dead(): ...\n", **exported}) == {"storage/b.py: dead"}
