"""The package `stratakv.runtime`: its names are there when they are asked for, and nothing is loaded before."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

import stratakv.runtime as door


def test_the_door_and_its_list_name_the_same() -> None:
    assert sorted(door.__all__) == door.__all__
    assert set(door.__all__) == door._HOMES.keys()
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        door.Nothing  # noqa: B018


def test_type_checkers_see_every_name() -> None:
    tree = ast.parse(Path(str(door.__file__)).read_text())
    (block,) = (node for node in tree.body if isinstance(node, ast.If))
    seen = {alias.name for node in block.body if isinstance(node, ast.ImportFrom) for alias in node.names}
    assert seen == {*door.__all__}


@pytest.mark.parametrize("name", door.__all__)
def test_each_name_is_what_its_module_calls_so(name: str) -> None:
    assert getattr(door, name).__name__ == name


def test_settings_and_errors_are_there_without_a_model_library() -> None:
    """In a process of its own, for this one has loaded all of it."""
    probe = (
        "import json, sys, threading; import stratakv.runtime as door\n"
        "before = sorted(name for name in sys.modules if name.startswith('stratakv.'))\n"
        "door.KVConfig(), door.GenerationConfig(), door.StratakvError(), door.Reply()\n"
        "print(json.dumps([before, sorted(sys.modules), threading.active_count()]))"
    )
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True)
    before, after, threads = json.loads(done.stdout)
    assert (before, threads) == (["stratakv.runtime"], 1)
    assert not {"torch", "transformers", "lmdb"} & {*after}
