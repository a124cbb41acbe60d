"""Session names as people type them: the same letters may be other bytes, and one letter may be wrong."""

from __future__ import annotations

import difflib
import shlex
import unicodedata
from collections.abc import Iterable
from pathlib import Path

from ...storage import LaterVersionError, RecordError
from ...storage.disk.session_name import MAX_BYTES, is_session_name
from ..api.errors import SessionError, WrongTypeError
from ..model.locate import cache_dir

_MAX_LISTED = 10


def check_name(name: str) -> str:
    """`name` in the form it is stored under: composed, since a keyboard or a file system may take an accent apart.

    Raises SessionError unless it is 1 to 200 printable bytes without slashes.
    """
    if not isinstance(name, str):
        raise WrongTypeError(f"a session name is a text, not {name!r}")
    if not is_session_name(name):
        raise SessionError(f"a session name is 1 to {MAX_BYTES} printable bytes without slashes, not {name!r}")
    composed = unicodedata.normalize("NFC", name)
    return composed if is_session_name(composed) else name


def same_name(name: str, names: Iterable[str]) -> str | None:
    """The one of `names` that equals `name`, if need be in another composition; None if there is none."""
    known = list(names)
    if name in known:
        return name
    composed = unicodedata.normalize("NFC", name)
    return next((other for other in known if unicodedata.normalize("NFC", other) == composed), None)


def listed(name: str, names: Iterable[str]) -> str:
    """`names` for a message, the first ten of them; it also asks about those that are nearly `name`."""
    known = sorted(set(names))
    folded = {other.casefold(): other for other in known}
    near = [folded[found] for found in difflib.get_close_matches(name.casefold(), folded, 3, 0.75)]
    more = f" and {len(known) - _MAX_LISTED} more" if len(known) > _MAX_LISTED else ""
    asked = f"; did you mean {' or '.join(map(repr, near))}?" if near else ""
    return f"saved: {', '.join(known[:_MAX_LISTED]) or 'none'}{more}{asked}"


def unreadable(name: str, folder: Path, error: RecordError) -> SessionError:
    """The error to raise for a session that is there and cannot be used."""
    if isinstance(error, LaterVersionError):
        return SessionError(
            f"session {name!r} was written by a later version of stratakv ({error}); it is left as it is: "
            "use it with that version"
        )
    return SessionError(f"session {name!r} is damaged ({error}); to remove it: {rm_command(name, folder)}")


def rm_command(name: str, folder: Path) -> str:
    """The shell command that removes a session from a store's folder, whatever its name begins with."""
    where = "" if folder.parent == cache_dir() / "kv" else f" --kv-dir {shlex.quote(str(folder.parent))}"
    if name.startswith("-"):
        return f"stratakv sessions rm{where} -- {shlex.quote(name)}"
    return f"stratakv sessions rm {shlex.quote(name)}{where}"
