"""The arrows between the folders, and what nothing may do: read pickles, run what a file or a model brings.

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
CALLS = {
    "torch.load", "torch.serialization.load", "torch.jit.load", "torch.hub.load", "pandas.read_pickle",
    "yaml.load", "yaml.load_all", "yaml.full_load", "yaml.unsafe_load", "eval", "exec",
    "builtins.eval", "builtins.exec",
}  # fmt: skip
"""What runs code that it is given, or can."""
REMOTE = "trust_remote_code"


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
        if name in CALLS or (name == "numpy.load" and (call.keywords or len(call.args) != 1)):
            found.append(f"{module}:{line} calls {name}")
        if name in ("importlib.import_module", "__import__") and PICKLES & {first_text(call).split(".")[0]}:
            found.append(f"{module}:{line} imports {first_text(call)}")
    found += [f"{module}:{line} sets {REMOTE}" for line in remote_code(tree)]
    return found


def first_text(call: ast.Call) -> str:
    first = call.args[0] if call.args else None
    return first.value if isinstance(first, ast.Constant) and isinstance(first.value, str) else ""


def remote_code(tree: ast.AST) -> Iterator[int]:
    """Lines that give `trust_remote_code` anything but a plain False, in a call or in a dict for one."""
    for node in ast.walk(tree):
        given: list[ast.expr] = []
        if isinstance(node, ast.Call):
            given = [keyword.value for keyword in node.keywords if keyword.arg == REMOTE]
        elif isinstance(node, ast.Dict):
            pairs = zip(node.keys, node.values, strict=True)
            given = [value for name, value in pairs if isinstance(name, ast.Constant) and name.value == REMOTE]
        elif isinstance(node, ast.Assign):
            subscripts = [target.slice for target in node.targets if isinstance(target, ast.Subscript)]
            given = [node.value for name in subscripts if isinstance(name, ast.Constant) and name.value == REMOTE]
        yield from (value.lineno for value in given if not (isinstance(value, ast.Constant) and value.value is False))


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
        ("examples.chat", "import numpy as np\nnp.load('f', None, True)"),
        ("stratakv.runtime.engine", "import importlib\nimportlib.import_module('pickle')"),
        ("stratakv.runtime.engine", "__import__('dill')"),
        ("stratakv.runtime.engine", "import torch\ntorch.jit.load('f')"),
        ("stratakv.runtime.engine", "import yaml\nyaml.load(f, Loader=yaml.Loader)"),
        ("stratakv.runtime.engine", "from yaml import unsafe_load\nunsafe_load(f)"),
        ("stratakv.runtime.engine", "eval('1')"),
        ("examples.chat", "exec(text)"),
        ("stratakv.runtime.engine", "AutoModel.from_pretrained('m', trust_remote_code=True)"),
        ("stratakv.runtime.engine", "AutoModel.from_pretrained('m', trust_remote_code=flag)"),
        ("stratakv.runtime.engine", "options = {'trust_remote_code': True}"),
        ("stratakv.runtime.engine", "options['trust_remote_code'] = True"),
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
        ("stratakv.runtime.engine", "model.eval()\nimport yaml\nyaml.safe_load(f)"),
        ("stratakv.runtime.engine", "AutoModel.from_pretrained('m', trust_remote_code=False)"),
        ("stratakv.runtime.engine", "options = {'trust_remote_code': False, 'a': True}"),
    ],
)
def test_what_is_allowed_passes(module: str, source: str) -> None:
    assert violations(source, module) == []
