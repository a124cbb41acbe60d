"""Where the project's files lie, for tests in whatever folder."""

from __future__ import annotations

from pathlib import Path

SUPPORT = Path(__file__).parent
TESTS = SUPPORT.parent
ROOT = TESTS.parent
DATA = TESTS / "data"
RECALL = DATA / "recall"
"""A small trained model that recalls pairs."""
EXCERPT = DATA / "texts"
"""What the evaluation's texts are replaced with: a small part of each."""
ABBEY = ROOT / "examples" / "northanger_abbey.txt"
