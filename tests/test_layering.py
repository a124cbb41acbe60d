"""The arrows between rooms, and what nothing may do: read pickles, run what a file or a model brings.

A folder of ours imports what `OURS` says, and a room in it what `ROOMS` says. No module can be reached from itself.
Checked on the syntax tree, so imports inside functions and under TYPE_CHECKING count as well.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from places import ROOT

OURS = {
    "kernels": {"kernels"},
    "storage": {"storage", "kernels"},
    "retrieval": {"retrieval", "kernels"},
    "runtime": {"runtime", "storage", "retrieval", "kernels"},
}
"""Folder -> which of our folders it may import."""
_GROUND = {"api", "process"}
_MODEL = _GROUND | {"untrusted", "model"}
_ENGINE = _MODEL | {"layers", "engine"}
_CHAT = _ENGINE | {"sessions", "chat"}
_PAGES = {"page", "counters", "errors", "files"}
ROOMS = {
    "runtime": {
        "__init__": {"api", "chat", "process"},
        "__main__": {"cli"},
        "api": _GROUND,
        "process": _GROUND,
        "untrusted": {"untrusted", "api"},
        "model": _MODEL,
        "layers": {"layers", "untrusted", *_GROUND},
        "engine": _ENGINE,
        "sessions": _ENGINE | {"sessions"},
        "chat": _CHAT,
        "bench": _CHAT | {"bench"},
        "evaluation": _CHAT | {"evaluation"},
        "cli": _CHAT | {"bench", "evaluation", "cli"},
    },
    "storage": {
        "__init__": {"tiered_store", "memory", "disk", "transfer", *_PAGES},
        "files": {"files"},
        "errors": {"files"},
        "page": set(),
        "counters": set(),
        "codecs": {"codecs", *_PAGES},
        "memory": {"memory", *_PAGES},
        "disk": {"disk", "codecs", *_PAGES},
        "transfer": {"transfer", "memory", "disk", "codecs", *_PAGES},
        "tiered_store": {"transfer", "memory", "disk", "codecs", *_PAGES},
    },
    "retrieval": {
        "__init__": {"index", "layer", "params", "registry"},
        "layer": set(),
        "params": set(),
        "stored": set(),
        "reading": set(),
        "scoring": set(),
        "index": {"layer", "params", "reading", "scoring", "stored"},
        "structures": {"structures", "index"},
        "indexes": {"indexes", "structures", "index", "layer", "params", "reading", "scoring", "stored"},
        "registry": {"index", "indexes", "layer", "params"},
        "placement": {"index", "params"},
        "placements": {"placements", "placement", "params"},
        "placement_registry": {"placement", "placements", "params", "registry"},
    },
}
"""Folder -> room, or file beside the rooms -> which of them it may import."""
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
        if root == "stratakv" and crosses_a_wall(module.split(".")[1:], rest):
            found.append(f"{module}:{line} imports {name}, through a wall")
        if root == "transformers" and folder != "runtime":
            found.append(f"{module}:{line} imports transformers")
        libraries = {"numpy", "numba", "llvmlite"} if "compiled" in module.split(".") else {"torch", "triton"}
        if folder == "kernels" and root not in {"stratakv", *libraries, *sys.stdlib_module_names}:
            found.append(f"{module}:{line} imports {root}")
    for line, name, call in called(tree):
        if name in CALLS or (name == "numpy.load" and (call.keywords or len(call.args) != 1)):
            found.append(f"{module}:{line} calls {name}")
        if name in ("importlib.import_module", "__import__") and PICKLES & {first_text(call).split(".")[0]}:
            found.append(f"{module}:{line} imports {first_text(call)}")
    found += [f"{module}:{line} sets {REMOTE}" for line in remote_code(tree)]
    return found


def crosses_a_wall(module: list[str], name: list[str]) -> bool:
    """Whether the room of `module` may not import from the room of `name`, both without `stratakv`."""
    rooms = ROOMS.get(module[0], {})
    if name[:1] != module[:1] or len(name) < 2 or len(module) < 2 or name[1] not in rooms:
        return False
    return name[1] != module[1] and name[1] not in rooms.get(module[1], set())


def graph(files: list[tuple[Path, str]]) -> dict[str, set[str]]:
    """Which of our modules each of them imports."""
    modules = {module for _, module in files}
    found: dict[str, set[str]] = {}
    for path, module in files:
        names = {name for _, name in imported(ast.parse(path.read_text()), module)}
        found[module] = {each for name in names for each in (name, name.rpartition(".")[0]) if each in modules}
    return found


def cycle(arrows: dict[str, set[str]]) -> list[str]:
    """Modules that import one another in a ring; none if there is none."""
    left = {module: targets & arrows.keys() for module, targets in arrows.items()}
    while ends := {module for module, targets in left.items() if not targets}:
        left = {module: targets - ends for module, targets in left.items() if module not in ends}
    if not left:
        return []
    way = [min(left)]
    while way[-1] not in way[:-1]:
        way.append(min(left[way[-1]]))
    return way[way.index(way[-1]) :]


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


def test_every_room_is_in_the_plan() -> None:
    for folder, rooms in ROOMS.items():
        there = {
            path.stem for path in (ROOT / folder).iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()
        }
        assert there == rooms.keys()
        assert len([*(ROOT / folder).iterdir()]) - (ROOT / folder / "__pycache__").exists() <= 14


def test_no_module_imports_itself_by_a_way_round() -> None:
    arrows = graph(sources())
    assert cycle(arrows) == []
    assert "stratakv.runtime.engine.sequence" in arrows["stratakv.runtime.engine.engine"]
    arrows["stratakv.runtime.engine.sequence"].add("stratakv.runtime.engine.engine")
    ring = cycle(arrows)
    assert ring[0] == ring[-1]
    assert {"stratakv.runtime.engine.sequence", "stratakv.runtime.engine.engine"} <= {*ring}


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("stratakv.runtime.engine.generate", "from ..chat.chat import Chat"),
        ("stratakv.runtime.layers.tiered", "from ..engine.sequence import Sequence"),
        ("stratakv.runtime.model.model", "def f():\n    from ..engine import engine"),
        ("stratakv.runtime.sessions.session", "if TYPE_CHECKING:\n    from ..chat.runtime import Runtime"),
        ("stratakv.runtime.evaluation.run", "from ..bench.bandwidths import Bandwidths"),
        ("stratakv.storage.memory.arena", "from ..disk.disk_tier import DiskTier"),
        ("stratakv.retrieval.structures.refine", "from ..indexes.leoam import LeoAM"),
        ("stratakv.kernels.topk_pages", "from ..storage import Arena"),
        ("stratakv.kernels.topk_pages", "import stratakv.retrieval.index"),
        ("stratakv.kernels.topk_pages", "import numpy as np"),
        ("stratakv.storage.page", "from ..retrieval.index import Index"),
        ("stratakv.storage.page", "from .. import retrieval"),
        ("stratakv.storage.page", "from stratakv import runtime"),
        ("stratakv.storage.codecs.raw", "from ...runtime.config import KVConfig"),
        ("stratakv.storage.__init__", "from ..runtime import Chat"),
        ("stratakv.retrieval.indexes.bounds", "def f():\n    from ...storage.page import page_key"),
        ("stratakv.retrieval.indexes.bounds", "if TYPE_CHECKING:\n    import transformers"),
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
        ("stratakv.retrieval.indexes.bounds", "import numpy\nfrom ...kernels.page_bounds import page_bounds"),
        (
            "stratakv.runtime.engine",
            "import transformers\nfrom ..storage import Arena\nfrom ..retrieval import Index",
        ),
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
