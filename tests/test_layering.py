"""The arrows between the folders, and what nothing may do: read pickles.

    runtime                everything; alone it imports transformers
    storage | retrieval    kernels; never each other
    kernels                torch and triton

Checked on the syntax tree, so imports inside functions and under TYPE_CHECKING count as well.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
OURS = {
    "kernels": {"kernels"},
    "storage": {"storage", "kernels"},
    "retrieval": {"retrieval", "kernels"},
    "runtime": {"runtime", "storage", "retrieval", "kernels"},
}
"""Folder -> which of our folders it may import."""
PICKLES = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
LOADS = {"torch.load", "numpy.load"}


def imported(tree: ast.AST, module: str) -> Iterator[tuple[int, str]]:
    """Absolute names a module imports, with their lines; `module` is its own dotted name, of a file."""
    package = module.split(".")[:-1]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            start = ".".join([*base, *([node.module] if node.module else [])])
            yield from ((node.lineno, f"{start}.{alias.name}") for alias in node.names)


def local_names(tree: ast.AST) -> dict[str, str]:
    """What a name in the file stands for: `np` -> `numpy`, `load` -> `torch.load`."""
    names = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names.update({alias.asname: alias.name for alias in node.names if alias.asname})
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names.update({alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names})
    return names


def called(tree: ast.AST) -> Iterator[tuple[int, str, ast.Call]]:
    names = local_names(tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            first, *rest = ast.unparse(node.func).split(".")
            yield node.lineno, ".".join([names.get(first, first), *rest]), node


def violations(source: str, module: str) -> list[str]:
    """What `source` does that a file named `module` (`stratakv.storage.page`, `examples.chat`) may not."""
    tree = ast.parse(source)
    folder = module.split(".")[1] if module.startswith("stratakv.") else ""
    found = []
    for line, name in imported(tree, module):
        root, *rest = name.split(".")
        if root in PICKLES:
            found.append(f"{module}:{line} imports {root}")
        if root in OURS:
            found.append(f"{module}:{line} imports the folder {root} instead of stratakv.{root}")
        if not folder:
            continue
        if root == "stratakv" and rest and rest[0] not in OURS[folder]:
            found.append(f"{module}:{line} imports {name}")
        if root == "transformers" and folder != "runtime":
            found.append(f"{module}:{line} imports transformers")
        if folder == "kernels" and root not in {"stratakv", "torch", "triton", *sys.stdlib_module_names}:
            found.append(f"{module}:{line} imports {root}")
    for line, name, call in called(tree):
        if name in LOADS and not (name == "numpy.load" and not call.keywords):
            found.append(f"{module}:{line} calls {name}")
    return found


def sources() -> list[tuple[Path, str]]:
    """Every Python file of the library and the examples, with the name it is imported by."""
    found = []
    for folder in (*OURS, "examples"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            dotted = ".".join(path.relative_to(ROOT).with_suffix("").parts)
            found.append((path, dotted if folder == "examples" else f"stratakv.{dotted}"))
    return found


def test_the_arrows_hold_and_nothing_unpickles() -> None:
    files = sources()
    assert {module.split(".")[1] for _, module in files if module.startswith("stratakv.")} == set(OURS)
    assert [wrong for path, module in files for wrong in violations(path.read_text(), module)] == []


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("stratakv.kernels.topk_pages", "from ..storage import Arena"),
        ("stratakv.kernels.topk_pages", "import stratakv.retrieval.index"),
        ("stratakv.kernels.topk_pages", "import numpy as np"),
        ("stratakv.storage.page", "from ..retrieval.index import Index"),
        ("stratakv.storage.page", "from .. import retrieval"),
        ("stratakv.storage.page", "from stratakv import runtime"),
        ("stratakv.storage.codecs.raw", "from ...runtime.config import KVConfig"),
        ("stratakv.storage.__init__", "from ..runtime import Chat"),
        ("stratakv.retrieval.bounds", "def f():\n    from ..storage.page import page_key"),
        ("stratakv.retrieval.bounds", "if TYPE_CHECKING:\n    import transformers"),
        ("stratakv.storage.page", "from transformers import AutoModel"),
        ("stratakv.runtime.engine", "from storage import Arena"),
        ("stratakv.runtime.engine", "import pickle"),
        ("stratakv.runtime.engine", "from pickle import loads"),
        ("stratakv.runtime.engine", "import torch\ntorch.load('f')"),
        ("stratakv.runtime.engine", "import torch as t\nt.load('f', weights_only=True)"),
        ("stratakv.runtime.engine", "from torch import load as read\nread('f')"),
        ("examples.chat", "import numpy as np\nnp.load('f', allow_pickle=True)"),
        ("examples.chat", "import numpy\nnumpy.load('f', **options)"),
        ("examples.bench.gather", "import joblib"),
    ],
)
def test_a_seeded_violation_is_found(module: str, source: str) -> None:
    assert len(violations(source, module)) == 1


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("stratakv.kernels.topk_pages", "import math\nimport torch\nfrom . import launch\nfrom .launch import check"),
        ("stratakv.storage.codecs.raw", "from ..errors import RecordError\nfrom ...kernels.quantize import pack"),
        ("stratakv.storage.__init__", "from .arena import Arena\nfrom . import record"),
        ("stratakv.retrieval.bounds", "import numpy\nfrom ..kernels.page_bounds import page_bounds"),
        ("stratakv.runtime.engine", "import transformers\nfrom ..storage import Arena\nfrom ..retrieval import Index"),
        ("stratakv.runtime.engine", "import safetensors.torch\nsafetensors.torch.load(b'')"),
        ("examples.chat", "from stratakv.runtime import Runtime\nimport json\njson.load(f)"),
        ("examples.chat", "import numpy as np\nnp.load('f')"),
    ],
)
def test_what_is_allowed_passes(module: str, source: str) -> None:
    assert violations(source, module) == []
