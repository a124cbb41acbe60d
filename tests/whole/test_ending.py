"""What a batch system or a closing terminal sends ends the command as Ctrl-C does; what a kill leaves, the next run
removes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

BUSY = """
import os, signal, sys, threading
from pathlib import Path
from stratakv.runtime.cli import app as cli
from stratakv.runtime.cli.loading import LOADER
from stratakv.storage.files.scratch import scratch_folder

@cli.app.command()
def busy(where: Path, loading: bool = False) -> None:
    def work() -> None:
        with scratch_folder("bench", where) as folder:
            (folder / "data").write_bytes(bytes(1000))
            print("at work", flush=True)
            threading.Event().wait()

    if loading:
        threading.Thread(target=work, name=LOADER, daemon=True).start()
        threading.Event().wait()
    work()

cli.main()
"""


@contextmanager
def busy(*arguments: str, before: str = "") -> Iterator[subprocess.Popen[str]]:
    """The command at work, in a folder that is there for the time being."""
    command = [sys.executable, "-c", before + BUSY, "busy", *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        try:
            assert child.stdout.readline() == "at work\n"
            yield child
        finally:
            child.kill()


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)], ids=str
)
@pytest.mark.parametrize("loading", [False, True], ids=["at work", "while a model loads"])
def test_a_signal_ends_it_and_what_it_made_is_gone(
    number: signal.Signals, code: int, loading: bool, tmp_path: Path
) -> None:
    with busy(str(tmp_path), *(["--loading"] if loading else [])) as child:
        assert len(os.listdir(tmp_path)) == 1
        child.send_signal(number)
        assert child.communicate() == ("", "")
        assert child.returncode == code
    assert os.listdir(tmp_path) == []


def test_a_signal_that_is_ignored_stays_so(tmp_path: Path) -> None:
    """As under `nohup`."""
    ignoring = "import signal; signal.signal(signal.SIGHUP, signal.SIG_IGN)\n"
    with busy(str(tmp_path), before=ignoring) as child:
        child.send_signal(signal.SIGHUP)
        child.send_signal(signal.SIGTERM)
        assert child.wait() == 143


def test_what_a_kill_leaves_the_next_run_removes(tmp_path: Path) -> None:
    with busy(str(tmp_path)) as killed, busy(str(tmp_path)) as child:
        assert len(os.listdir(tmp_path)) == 2
        killed.kill()
        killed.wait()
        with busy(str(tmp_path)) as third:
            assert len(os.listdir(tmp_path)) == 2, "of the two that live"
            for living in (child, third):
                living.terminate()
                living.wait()
    assert os.listdir(tmp_path) == []
