"""An application may have made any dtype torch's default: nothing of ours takes it for its own tensors. Compiled loops
write by address, and a tensor of smaller numbers than they expect is written past its end."""

from __future__ import annotations

import ast
from pathlib import Path

from places import ROOT

_MAKERS = {"empty", "zeros", "ones", "rand", "randn", "linspace", "eye"}
_MEANT = {
    "runtime/model/decoder.py", "runtime/model/delta_net.py", "runtime/model/layer_inputs.py", "runtime/model/mlp.py",
    "runtime/model/norm.py", "runtime/model/short_conv.py",
}  # fmt: skip
"""Whoever makes a module's parameters says their dtype around it, as transformers does."""
FILES = [
    path for folder in ("runtime", "retrieval", "storage", "kernels") for path in sorted((ROOT / folder).rglob("*.py"))
]  # fmt: skip


def _without_dtype(path: Path) -> list[int]:
    return [
        node.lineno
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and isinstance(node.func.value, ast.Name)
        and node.func.value.id == "torch"
        and node.func.attr in _MAKERS
        and not any(keyword.arg in ("dtype", None) for keyword in node.keywords)
    ]


def test_every_new_tensor_says_its_dtype() -> None:
    found = {str(path.relative_to(ROOT)): lines for path in FILES if (lines := _without_dtype(path))}
    assert {name: lines for name, lines in found.items() if name not in _MEANT} == {}
