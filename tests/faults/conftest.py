"""Figures of the fault loops are printed at the end, also when tests pass."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from savers import Savers


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    """States are compared bit for bit, and how sums are split among threads is in their bits. The savers run with one
    thread as well. For whole modules, since what is compared with is made once in each."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def figures(record_property: Callable[[str, object], None]) -> Iterator[list[str]]:
    """Lines to print at the end of the run."""
    lines: list[str] = []
    yield lines
    for line in lines:
        record_property("figure", line)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    for report in terminalreporter.stats.get("", []):
        for name, line in report.user_properties if report.when == "teardown" else ():
            if name == "figure":
                terminalreporter.write_line(line)


@pytest.fixture(scope="session")
def tiny_gemma(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a random Gemma of one full and two sliding layers."""
    from tiny_models import save_tiny_model

    return save_tiny_model(tmp_path_factory.mktemp("tiny-gemma"), "gemma3_text")


@pytest.fixture(scope="session")
def tiny_hybrid(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a random LFM2 of one full and two recurrent layers."""
    from tiny_models import save_tiny_model

    return save_tiny_model(tmp_path_factory.mktemp("tiny-hybrid"), "lfm2")


@pytest.fixture
def savers(tiny_llama: Path) -> Iterator[Savers]:
    from savers import Savers

    found = Savers(tiny_llama)
    yield found
    found.close()
