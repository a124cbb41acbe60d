"""What the wheel holds, and what importing the package costs."""

from __future__ import annotations

import json
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

from places import ROOT

FOLDERS = ("runtime", "storage", "retrieval", "kernels")


def setuptools_settings() -> dict[str, Any]:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())
    return dict(settings["tool"]["setuptools"])


def code_folders() -> list[Path]:
    """Every folder below the four that holds Python files, relative to the root."""
    return sorted({path.parent.relative_to(ROOT) for folder in FOLDERS for path in (ROOT / folder).rglob("*.py")})


def test_every_code_folder_is_packaged() -> None:
    """The editable install finds new folders by itself, a wheel does not."""
    expected = {f"stratakv.{'.'.join(folder.parts)}": str(folder) for folder in code_folders()}
    settings = setuptools_settings()
    assert set(settings["packages"]) == set(expected)
    assert settings["package-dir"] == expected


def test_every_package_but_kernels_has_an_init() -> None:
    """With one, the folder would shadow the `kernels` package that transformers probes for."""
    without = [folder for folder in code_folders() if not (ROOT / folder / "__init__.py").exists()]
    assert without == [Path("kernels")]


def test_every_package_is_typed() -> None:
    assert all((ROOT / folder / "py.typed").exists() for folder in FOLDERS)
    assert setuptools_settings()["package-data"] == {"*": ["py.typed", "*.sha256"]}


PROBE = """
import json, sys, threading
import stratakv.runtime
print(json.dumps({
    "heavy": [name for name in ("torch", "transformers", "lmdb") if name in sys.modules],
    "threads": threading.active_count(),
}))
"""


def test_importing_the_runtime_is_cheap(tmp_path: Path) -> None:
    """`stratakv --help` must answer at once, and a library may start nothing by being imported."""
    run = subprocess.run([sys.executable, "-c", PROBE], cwd=tmp_path, capture_output=True, text=True, check=True)
    found = json.loads(run.stdout)
    assert found["heavy"] == []
    assert found["threads"] == 1
    assert run.stderr == ""
