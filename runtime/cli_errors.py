"""How the command says that something cannot be: one clear line on stderr, exit code 2."""

from __future__ import annotations

import sys
from typing import NoReturn

import typer


def fail(error: BaseException) -> NoReturn:
    """One clear line, exit code 2."""
    print(f"stratakv: {' '.join(str(error).split())}", file=sys.stderr)
    raise typer.Exit(2)


def user_errors() -> tuple[type[BaseException], ...]:
    """What a user can cause and act on. Imported late: `--help` needs no model library."""
    from ..storage import StorageError
    from .errors import StratakvError

    return (StratakvError, StorageError, ValueError, OSError)
