"""The names that sessions may have. They are keys in a file and words on a terminal, never paths."""

from __future__ import annotations

MAX_BYTES = 200


def is_session_name(name: str) -> bool:
    """True for 1 to 200 printable bytes without slashes."""
    return name.isprintable() and 1 <= len(name.encode()) <= MAX_BYTES and not set(name) & set("/\\")


def session_name(key: bytes) -> str | None:
    """The session name that a record's key spells; None if no session can be called that."""
    try:
        name = key.decode()
    except UnicodeDecodeError:
        return None
    return name if is_session_name(name) else None
