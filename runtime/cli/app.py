"""The console command `stratakv`. It is thin: it turns options into library calls; `one_line.OneLine` reports
errors."""

from __future__ import annotations

import codecs
import gc
import logging
import os
import signal
import sys
import threading
from contextlib import suppress
from typing import Annotated

import typer

from ...storage.files.scratch import remove_all
from ..process.terminal import escaped_bytes, printable
from ..process.threads import choose
from .bench_command import bench
from .chat_command import chat
from .eval_command import calibrate, evaluation
from .loading import LOADER
from .methods_command import methods
from .one_line import EXIT_CODES, INTERRUPTED, OneLine, with_flags
from .plan_command import plan
from .sessions_command import sessions

_GC_EVERY = 100_000
"""The number of objects made before the garbage collector looks. Imports make objects that stay: a tenth of a start
went into looking."""

app = typer.Typer(
    name="stratakv",
    cls=OneLine,
    help="Chat with documents far larger than the GPU's memory.",
    epilog=EXIT_CODES,
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,  # rich alone would take longer than all else that --help does
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command()(chat)
app.add_typer(sessions, name="sessions")
app.command()(bench)
app.command()(calibrate)
app.command(name="eval")(evaluation)
app.command()(plan)
app.command()(methods)


def main() -> None:
    """Entry point: any error becomes one line on stderr and an exit code."""
    choose()
    gc.set_threshold(_GC_EVERY)
    _prepare_streams()
    _prepare_log()
    _prepare_signals()
    code: int | str | None = INTERRUPTED
    try:
        app()
    except SystemExit as done:
        code = done.code
    except KeyboardInterrupt:  # it came while the last lines were written
        pass
    _leave(code)


def _prepare_streams() -> None:
    """Open the standard streams that are closed, and let stdout take any text: a closed stream would give its number to
    the next file that is opened, and what is printed would be written into that."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    if sys.stdout is not None:
        codecs.register_error("stratakv", escaped_bytes)
        sys.stdout.reconfigure(errors="stratakv")  # type: ignore[union-attr]


def _prepare_log() -> None:
    handler = logging.StreamHandler()
    handler.setFormatter(_Warning())
    logging.getLogger("stratakv").addHandler(handler)
    conversion = logging.getLogger("stratakv.runtime.model.conversion")
    conversion.setLevel(logging.INFO)  # minutes and gigabytes: never in silence


def _prepare_signals() -> None:
    """Let signals of a batch system or a closing terminal end the command as Ctrl-C does: temporary files are removed.
    Where such a signal is ignored, as under `nohup`, it stays so."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is signal.SIG_DFL:
            signal.signal(number, _end)


def _end(number: int, frame: object) -> None:
    signal.signal(number, signal.SIG_DFL)  # a second signal does not wait
    raise SystemExit(128 + number)


class _Warning(logging.Formatter):
    """Formats a warning for a terminal: names of files in it are other people's words."""

    def format(self, record: logging.LogRecord) -> str:
        return f"stratakv: {printable(with_flags(record.getMessage()))}"


def _leave(code: int | str | None) -> None:
    """Leave with an exit code. A model that is still loading is not waited for: its thread cannot be ended, and nothing
    depends on it."""
    if any(thread.name == LOADER for thread in threading.enumerate()):
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError, ValueError, AttributeError):
                stream.flush()
        remove_all()
        os._exit(code if isinstance(code, int) else 1)
    sys.exit(code)


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import PackageNotFoundError, version

        try:
            print(f"stratakv {version('stratakv')}")
        except PackageNotFoundError:
            print("stratakv (not installed)")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("-V", "--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Chat with documents far larger than the GPU's memory."""


if __name__ == "__main__":
    main()
