"""What `stratakv.runtime` hands out: every error a caller can meet, with one root."""

from __future__ import annotations

import ast
import json
import runpy
from pathlib import Path
from typing import get_type_hints

import pytest

import stratakv.runtime as door
from stratakv.runtime import KVConfig, Runtime, StratakvError
from stratakv.runtime.api import errors as runtime_errors
from stratakv.runtime.api.stats import Stats, TierStats
from stratakv.storage import errors as storage_errors

ROOT = Path(__file__).parents[2]
RECALL = ROOT / "tests" / "data" / "recall"
INTERNAL = {
    "runtime/bench/contestant.py: LeftOutError": "the benchmark's own: caught there, a row without figures",
    "runtime/bench/llama_c.py: LlamaCppError": "the benchmark's own: caught there, a row without figures",
    "runtime/untrusted/template_render.py: TemplateFailedError": "caught by the caller that names the template's file",
}
"""Exceptions that nobody outside meets, and why."""


def test_every_error_is_at_the_door_and_has_one_root() -> None:
    kinds = {
        kind for module in (storage_errors, runtime_errors) for kind in vars(module).values()
        if isinstance(kind, type) and issubclass(kind, Exception)
    }  # fmt: skip
    assert {kind.__name__: kind for kind in kinds} == {
        name: found for name in door.__all__ if isinstance(found := getattr(door, name), type)
        and issubclass(found, Exception)
    }  # fmt: skip
    assert all(issubclass(kind, StratakvError) for kind in kinds)


def test_no_exception_of_ours_has_another_root() -> None:
    names, rooted = {}, {"StratakvError"}
    for folder in ("kernels", "storage", "retrieval", "runtime"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.ClassDef) and node.name.endswith("Error"):
                    names[f"{path.relative_to(ROOT)}: {node.name}"] = {ast.unparse(base) for base in node.bases}
    while more := {name.split(": ")[1] for name, bases in names.items() if bases & rooted} - rooted:
        rooted |= more
    assert {name for name in names if name.split(": ")[1] not in rooted} == INTERNAL.keys()


def test_stats_have_the_keys_that_their_types_say(tmp_path: Path) -> None:
    with Runtime.load(RECALL, device="cpu", kv=KVConfig(path=tmp_path, host_gb=0.01, disk_gb=0.01)) as runtime:
        stats = runtime.stats()
    assert stats.keys() == get_type_hints(Stats).keys()
    assert {*stats["edges"]} == {
        f"{edge}_bytes" for edge in ("host_to_gpu", "gpu_to_host", "disk_to_host", "host_to_disk")
    }
    assert {*stats["tiers"]} == {"host", "disk"}
    assert all(tier.keys() == get_type_hints(TierStats).keys() for tier in stats["tiers"].values())
    assert json.loads(json.dumps(stats)) == stats


def test_the_example_says_in_one_line_why_it_cannot_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    missing = tmp_path / "no such book.txt"
    monkeypatch.setattr("sys.argv", ["chat.py", str(missing)])
    load = Runtime.load
    monkeypatch.setattr(
        Runtime, "load",
        lambda model, kv: load(RECALL, device="cpu", kv=KVConfig(path=tmp_path, host_gb=0.01, disk_gb=0.01)),
    )  # fmt: skip
    with pytest.raises(SystemExit, match="no such book"):
        runpy.run_path(str(ROOT / "examples" / "chat.py"), run_name="__main__")

    def refused(model: str, kv: KVConfig) -> Runtime:
        raise runtime_errors.ModelFileError("there is no model")

    monkeypatch.setattr(Runtime, "load", refused)
    with pytest.raises(SystemExit, match="there is no model"):
        runpy.run_path(str(ROOT / "examples" / "chat.py"), run_name="__main__")
