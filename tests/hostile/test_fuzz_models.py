"""Damaged GGUF files and model directories, loaded as a user would: they load, or one typed error names the file."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from fuzz import Fuzz
from mutate import mutated_directory, mutated_gguf
from tiny_gguf import write_tiny_gguf
from tiny_models import save_tiny_model

COUNT = int(os.environ.get("FUZZ", "24"))
"""Of GGUF files and of directories together."""


def _forget_conversions(folder: Path) -> None:
    shutil.rmtree(folder / "cache" / "stratakv" / "models", ignore_errors=True)


def test_gguf_files(tmp_path: Path) -> None:
    whole = write_tiny_gguf(tmp_path / "whole.gguf")
    with Fuzz(tmp_path, ["model", [str(whole)]]) as fuzz:
        for number in range(COUNT // 2):
            path = tmp_path / f"m{number}.gguf"
            kind = mutated_gguf(number, whole, path)
            fuzz.run(f"{number} {kind}", "model", [str(path)], path.stat().st_size, str(path))
            path.unlink()
            _forget_conversions(tmp_path)
        print(f"\n{fuzz.figures.line('GGUF')}")
        assert fuzz.figures.failures == []


def test_model_directories(tmp_path: Path) -> None:
    whole = save_tiny_model(tmp_path / "whole")
    with Fuzz(tmp_path, ["model", [str(whole)]]) as fuzz:
        for number in range(COUNT - COUNT // 2):
            path = tmp_path / f"m{number}"
            shutil.copytree(whole, path)
            kind = mutated_directory(number, path)
            size = sum(file.stat().st_size for file in path.iterdir())
            fuzz.run(f"{number} {kind}", "model", [str(path)], size, str(path))
            shutil.rmtree(path)
        print(f"\n{fuzz.figures.line('directories')}")
        assert fuzz.figures.failures == []
