"""Running this checkout, and another one beside it, as its users would: by their own interpreter's `python -m`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parents[2]
FOLDERS = ("runtime", "storage", "retrieval", "kernels")
_CHOICES = ("OMP_", "GOMP_", "KMP_", "MKL_", "TRITON_INTERPRET", "PYTHONDONTWRITEBYTECODE")
"""Variables that would answer for a build what it is to choose by itself, or have it compile itself at each start."""


@dataclass(frozen=True, slots=True)
class Build:
    """A checkout, importable as `stratakv` from `path`."""

    name: str
    checkout: Path
    path: Path

    @property
    def commit(self) -> str:
        """Of the checkout, with a star where files were changed since."""
        asked = ["git", "-C", str(self.checkout), "describe", "--always", "--dirty=*", "--exclude=*"]
        return subprocess.run(asked, capture_output=True, text=True, check=False).stdout.strip() or "unknown"

    def environment(self) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith(_CHOICES)}
        return kept | {"PYTHONPATH": str(self.path)}

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        """A Python of this build with pipes to its input and output."""
        return subprocess.Popen(
            [sys.executable, *arguments], env=self.environment(), cwd=HERE, stdin=subprocess.PIPE,
            stdout=subprocess.PIPE, text=True,
        )  # fmt: skip


def make_builds(before: Path | None, scratch: Path) -> list[Build]:
    """This checkout, and `before` if it is given, first."""
    found = []
    for name, checkout in (("before", before), ("now", HERE)):
        if checkout is None:
            continue
        if not (checkout / "runtime" / "__main__.py").is_file():
            raise SystemExit(f"{checkout}: no checkout of stratakv")
        path = scratch / name
        (path / "stratakv").mkdir(parents=True)
        for folder in FOLDERS:
            (path / "stratakv" / folder).symlink_to(checkout.resolve() / folder)
        found.append(Build(name, checkout.resolve(), path))
    return found


def write_result(result: dict[str, Any], out: Path | None) -> None:
    """As JSON to standard output, and to `out` if that is given."""
    text = json.dumps(result, indent=1)
    print(text, flush=True)
    if out is not None:
        out.write_text(text + "\n", encoding="utf-8")
