"""Finding, removing and checking saved sessions over all models' folders of a store."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from ..storage import RecordError, StorageFullError
from .errors import SessionError
from .saved import Saved, StoreFolder, describe, store_folders

_WORTH_COMPACTING = 1.1
"""File against live bytes from which on a copy is made."""


def chosen_folders(root: Path, model: str | None, dtype: str | None, folder: str | None) -> list[Path]:
    """The models' folders in the store `root`; of one model, dtype or folder name where that is given."""
    found = store_folders(root)
    if folder is not None:
        found = [path for path in found if path.name.startswith(folder)]
    if model is not None:
        found = [path for path in found if describe(path).get("model") == model]
    if dtype is not None:
        found = [path for path in found if describe(path).get("dtype") == f"torch.{dtype}"]
    return found


@dataclass(frozen=True, slots=True)
class Found:
    """A session and where it is; `error` says why it cannot be read."""

    folder: Path
    name: str
    saved: Saved | None
    num_bytes: int
    """Its record and its pages, those included that other sessions share."""
    error: str | None = None


def sessions_in(folder: Path) -> Iterator[Found]:
    with StoreFolder(folder) as store:
        sizes = store.chain_bytes()
        for name in store.disk.session_names():
            try:
                saved = store.session(name)
            except RecordError as error:
                yield Found(folder, name, None, 0, str(error))
                continue
            if saved is not None:
                num_bytes = saved.record_bytes + sum(sizes.get(chain, 0) for chain in set(saved.chains))
                yield Found(folder, name, saved, num_bytes)


def find_session(folders: list[Path], name: str) -> Found:
    """The one session of that name. Raises SessionError if there is none, or one in several folders."""
    everything = [found for folder in folders for found in sessions_in(folder)]
    named = [found for found in everything if found.name == name]
    if not named:
        known = ", ".join(sorted({found.name for found in everything})) or "none"
        raise SessionError(f"no session {name!r}; saved: {known}")
    if len(named) > 1:
        places = ", ".join(found.folder.name for found in named)
        raise SessionError(f"{len(named)} sessions are called {name!r}; choose one with --in: {places}")
    return named[0]


@dataclass(slots=True)
class Collected:
    """What a collection did."""

    freed_bytes: int = 0
    left_bytes: int = 0
    num_records: int = 0
    removed_sessions: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def collect(folders: list[Path], max_bytes: int | None) -> Collected:
    """Remove what no saved session refers to, and give the room back to the file system.

    With `max_bytes` only as much as makes the folders fit together: unsaved prefixes first, in the folder
    that was used longest ago first; then, if need be, the sessions that were used longest ago.
    Nothing is removed that a running program may be using.
    """
    done = Collected()
    before = _size(folders)
    for folder in folders:
        with StoreFolder(folder) as store:
            done.num_records += store.disk.delete_nameless()
    if max_bytes is None:
        for folder in folders:
            with StoreFolder(folder) as store:
                done.num_records += store.remove_unused()
    else:
        _shrink(folders, max_bytes, done)
    for folder in folders:
        _compact(folder, done, always=max_bytes is not None and _size(folders) > max_bytes)
    done.left_bytes = _size(folders)
    done.freed_bytes = before - done.left_bytes
    if max_bytes is not None and done.left_bytes > max_bytes:
        done.notes.append(f"{done.left_bytes} bytes are left, more than {max_bytes}: the rest is in use or bookkeeping")
    return done


def _shrink(folders: list[Path], max_bytes: int, done: Collected) -> None:
    """Sweep unsaved prefixes, then sessions one by one, until the live bytes fit."""
    oldest_first = sorted(folders, key=lambda folder: (folder / "data.mdb").stat().st_mtime)
    for folder in oldest_first:
        excess = _live(folders) - max_bytes
        if excess <= 0:
            return
        with StoreFolder(folder) as store:
            done.num_records += store.remove_unused(excess)
    everything = [found for folder in folders for found in sessions_in(folder) if found.saved is not None]
    for found in sorted(everything, key=_last_use):
        if _live(folders) <= max_bytes:
            return
        with StoreFolder(found.folder) as store:
            store.disk.delete_session(found.name)
            done.num_records += store.remove_unused()
        done.removed_sessions.append(f"{found.name} ({found.folder.name})")


def _last_use(found: Found) -> float:
    assert found.saved is not None
    return max(found.saved.saved_at or 0.0, found.saved.used_at or 0.0)


def _compact(folder: Path, done: Collected, *, always: bool) -> None:
    with StoreFolder(folder) as store:
        if not always and store.disk.file_bytes <= _WORTH_COMPACTING * store.disk.used_bytes:
            return
        try:
            if not store.disk.compact():
                done.notes.append(
                    f"{folder.name} is in use: what was freed in it is used again, its file stays as long"
                )
        except StorageFullError as error:
            done.notes.append(str(error))


def _live(folders: list[Path]) -> int:
    total = 0
    for folder in folders:
        with StoreFolder(folder) as store:
            total += store.disk.used_bytes
    return total


def _size(folders: list[Path]) -> int:
    return sum((folder / "data.mdb").stat().st_size for folder in folders)
