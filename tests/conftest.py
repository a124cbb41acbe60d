"""Shared by all tests: one tiny model, and Triton's interpreter where there is no GPU."""

from __future__ import annotations

import gc
import os
import signal
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
from apart import Apart
from memory import Held, PeakMemory
from places import ROOT, TESTS

# All processes of a run, whatever folder of caches they are given, find what one of them has compiled.
os.environ.setdefault("NUMBA_CACHE_DIR", str(ROOT / "build" / "compiled"))


@pytest.fixture(scope="session")
def tiny_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a random three-layer Llama."""
    from tiny_models import save_tiny_model

    return save_tiny_model(tmp_path_factory.mktemp("tiny-llama"))


@pytest.fixture(scope="session", autouse=True)
def _compiled_code_is_kept() -> None:
    """Operations of compiled steps that a test calls by themselves are kept where those of whole models are."""
    if find_spec("numba"):
        from stratakv.kernels.compiled.kept import Cache
        from stratakv.runtime.process import compiled

        Cache.folder = compiled._kept_in(ROOT / "build", Cache.key())


@pytest.fixture(scope="session", autouse=True)
def _signals_come_through() -> Iterator[None]:
    """Also in a run under `nohup`, or in the background of a script, where one or the other is ignored. What is ignored
    stays so in child processes; what has a handler of ours does not, and this process is ended by it no more than
    before."""
    ignored = [number for number in (signal.SIGHUP, signal.SIGINT) if signal.getsignal(number) is signal.SIG_IGN]
    for number in ignored:
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else lambda *_: None)
    yield
    for number in ignored:
        signal.signal(number, signal.SIG_IGN)


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The user's cache directory is one of the test's own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """Where a store may be made."""
    return tmp_path / "kv"


@pytest.fixture
def read_by_host(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the device could find by itself is read as texts are of which a part is on disk."""
    from stratakv.runtime.layers.page_reader import PageReader

    monkeypatch.setattr(PageReader, "_read_on_device", lambda *_: False)


@pytest.fixture(autouse=True)
def _one_thread_for_small_tensors(request: pytest.FixtureRequest) -> Iterator[None]:
    """Where tensors are tiny, torch's threads mostly wait for each other, the more so on a busy machine.
    Models keep them."""
    import torch

    before = torch.get_num_threads()
    if request.path.relative_to(TESTS).parts[0] in ("kernels", "storage", "retrieval", "faults", "hostile"):
        torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def _held() -> Held:
    return Held()


@pytest.fixture(autouse=True)
def _memory_goes_back(_held: Held) -> Iterator[None]:
    """Large models that a test has loaded are not there beside those of the next."""
    yield
    _held.give_back_if_much()


_MEMORY: list[PeakMemory] = []
"""Of the process that began the run; its workers, and all that these start, are counted there."""


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(Apart(), "apart")


def pytest_sessionstart(session: pytest.Session) -> None:
    if not hasattr(session.config, "workerinput") and session.config.pluginmanager.hasplugin("apart"):
        _MEMORY.append(PeakMemory())


@pytest.hookimpl(tryfirst=True)
def pytest_collection(session: pytest.Session) -> None:
    """Before any test file is imported: kernels read the variable when they are defined. A process that has workers
    runs no test, and does without torch: some 250 MB."""
    assert "stratakv.kernels.launch" not in sys.modules, "a conftest imports kernels too early"
    if not session.config.pluginmanager.hasplugin("dsession"):
        import torch

        if not torch.cuda.is_available():
            os.environ.setdefault("TRITON_INTERPRET", "1")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    for memory in _MEMORY:
        terminalreporter.write_line(f"peak memory of all processes together: {memory.stop() / 1e9:.2f} GB")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    import torch

    items.sort(key=_the_larger_first)
    if not torch.cuda.is_available():
        skip = pytest.mark.skip(reason="needs a CUDA device")
        for item in items:
            if "gpu" in item.keywords:
                item.add_marker(skip)


def pytest_collection_finish() -> None:
    """What has been imported and collected is there to the end. Collecting cycles, which happens after each file, looks
    at it no more: that took half a second."""
    gc.collect()
    gc.freeze()


def _the_larger_first(item: pytest.Item) -> tuple[bool, bool, bool]:
    """Real models, and of these the one whose weights and tokens take most, while a worker holds little else. Tests
    that fork are the last: one after another they share a process (`apart`).

    Workers begin with a half of the list each: the first of two has all large models, one after another, while the
    other is at small ones."""
    is_large, forks = (item.get_closest_marker(name) is not None for name in ("model", "forks"))
    return not is_large, "gemma3-270m" not in item.name, forks
