"""Errors of the command, each told as one clear line on stderr and an exit code.

All commands run inside `OneLine.main`, so none of them catches anything itself.
"""

from __future__ import annotations

import os
import re
import sys
import traceback
from typing import Any, NoReturn

import typer
from typer.core import TyperGroup

from ..process.terminal import printable

FAILED, REFUSED, UNDECIDED, INTERRUPTED, CLOSED = 1, 2, 3, 130, 141
"""Exit codes beside 0: a check failed, or a fault of the program; bad input; samples too few to decide a mark; Ctrl-C;
whoever read stdout is gone."""
EXIT_CODES = (
    "Exit codes: 0 done; 1 a check failed, or a fault of the program; 2 what was asked cannot be, in one line on "
    "stderr; 3 too few samples to decide (eval --strict); 129 the terminal was closed; 130 Ctrl-C; 141 whoever read "
    "the output is gone; 143 SIGTERM. With STRATAKV_DEBUG=1 errors come with a traceback."
)
_CLICK_ERROR: Any = next(base for base in typer.BadParameter.__mro__ if base.__name__ == "ClickException")

CAPS = {
    "host_gb": "--host-kv-gb", "gpu_gb": "--gpu-kv-gb", "disk_gb": "--disk-kv-gb", "gpu_memory_cap": "--gpu-memory-cap",
    "random_kv": "--random-kv", "link_gbps": "--link-gbps", "disk_gbps": "--disk-gbps", "kv_dir": "--kv-dir",
    "turn_tokens": "--turn-tokens", "ctx": "--ctx", "path=": "--kv-dir", "device=cpu": "--device cpu",
    "profile=": "--profile", "out=": "--out", "weights=own": "--weights own", "weights=file": "--weights file",
    "weights=int8": "--weights int8", "weights=int4": "--weights int4",
}  # fmt: skip
"""The options of the command line by the Python arguments that they set."""
GENERATION = {
    "max_new_tokens": "--n-predict", "temperature": "--temp", "top_p": "--top-p", "top_k": "--top-k",
    "min_p": "--min-p", "repetition_penalty": "--repeat-penalty", "stop_strings": "--stop",
    "leave do_sample off": "use --temp 0", "max_repeats=0": "--max-repeats 0", "max_repeats": "--max-repeats",
}  # fmt: skip
"""The options by the settings that the chat sets by their Python names."""


def say(line: str) -> None:
    """Write a line of the command's own on stderr."""
    if sys.stderr is not None:
        try:
            print(f"stratakv: {printable(line)}", file=sys.stderr, flush=True)
        except OSError:  # nobody reads it, or there is no room: there is no other place to say it
            return


def with_flags(message: str, names: dict[str, str] | None = None) -> str:
    """A message that names Python arguments, in the words of the command line. Quoted text stays as it is, and so does
    a name that is part of a path."""
    table = CAPS | GENERATION if names is None else names
    names_in_words = re.compile(rf"""(?<![\w./'"-])({"|".join(table)})(?![\w./'"-])""")
    quoted = re.compile(r"""('(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*")""")
    parts = quoted.split(message)
    parts[::2] = [names_in_words.sub(lambda found: table[found[1]], part) for part in parts[::2]]
    return "".join(parts)


def user_errors() -> tuple[type[BaseException], ...]:
    """The errors that a user can cause and act on. Imported late: `--help` needs no model library."""
    from ..api.errors import StratakvError

    return (StratakvError, ValueError, OSError, MemoryError)


def is_debugging() -> bool:
    return os.environ.get("STRATAKV_DEBUG", "") not in ("", "0")


def words(error: BaseException) -> str:
    """The words for an error that a user can act on, in one line."""
    if is_out_of_memory(error):
        said = str(error) or "nothing was allocated"
        return f"not enough memory; lower host_gb or gpu_gb, or shorten the context ({said})"
    if isinstance(error, RecursionError):
        return f"too deeply nested: {error}"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror if error.filename is None else f"{os.fsdecode(error.filename)}: {error.strerror}"
    return str(error) or type(error).__name__


def is_out_of_memory(error: BaseException) -> bool:
    """True if `error` means that memory is exhausted; PyTorch says so with a RuntimeError."""
    is_tensors = isinstance(error, RuntimeError) and re.search(r"out of memory|can't allocate memory", str(error))
    return isinstance(error, MemoryError) or bool(is_tensors)


def fault(error: BaseException) -> str:
    """The words for an error that nobody foresaw."""
    how = "" if is_debugging() else "; STRATAKV_DEBUG=1 shows where"
    return f"a fault of the program, please report it: {type(error).__name__}: {error}{how}"


class OneLine(TyperGroup):
    """The whole command: whatever happens ends in an exit code and at most one line on stderr."""

    def main(self, *args: Any, **kwargs: Any) -> NoReturn:
        kwargs["standalone_mode"] = False
        kwargs["prog_name"] = "stratakv"
        try:
            code = super().main(*args, **kwargs) or 0
            if sys.stdout is not None:
                sys.stdout.flush()
        except BaseException as error:
            sys.exit(_exit_code(error))
        sys.exit(code)

    def invoke(self, ctx: Any) -> Any:
        """Run the command itself. Errors are caught here, before the library that parses options makes another exit
        code of them."""
        try:
            os.getcwd()
        except FileNotFoundError:  # native libraries abort without a word of their own
            raise FileNotFoundError("the current folder was deleted; change to another one") from None
        try:
            return super().invoke(ctx)
        except BrokenPipeError:
            _leave_stdout()
            raise typer.Exit(CLOSED) from None


def _exit_code(error: BaseException) -> int:
    """Tell the user about `error` and return the exit code for it."""
    if isinstance(error, BrokenPipeError):
        _leave_stdout()
        return CLOSED
    if isinstance(error, KeyboardInterrupt | typer.Abort):
        return INTERRUPTED
    if isinstance(error, SystemExit):
        is_closed = type(sys.stdout).__name__ == "PacifyFlushWrapper"  # the help, to a closed pipe
        return CLOSED if is_closed else error.code if isinstance(error.code, int) else FAILED
    if isinstance(error, _CLICK_ERROR):
        return _usage(error)
    if is_debugging():
        traceback.print_exception(error)
    if isinstance(error, user_errors()) or is_out_of_memory(error):
        say(with_flags(words(error)))
        return REFUSED
    say(fault(error))
    return FAILED


def _usage(error: Any) -> int:
    """Tell what is wrong with options that do not parse. Without any options, the help is what was wanted."""
    if type(error).__name__ == "NoArgsIsHelpError":
        error.show()
        return REFUSED
    context = getattr(error, "ctx", None)
    where = f"; {context.command_path} --help lists what there is" if context is not None else ""
    say(error.format_message().replace("Invalid value for ", "").rstrip(".") + where)
    return REFUSED


def _leave_stdout() -> None:
    """Leave stdout, which nobody reads: text that is still buffered must not be tried again when the interpreter
    ends."""
    try:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)
    except (OSError, ValueError):  # not a file of the system, as in tests
        return
