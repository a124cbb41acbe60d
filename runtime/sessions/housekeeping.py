"""Finding, removing and checking saved sessions over all models' folders of a store."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...storage import RecordError, StorageFullError, StoreUnavailableError, UnknownPagesError
from ..api.errors import ModelFileError, SessionError
from ..api.typed import DTYPES
from ..model.identity import gguf_digest, model_key, weights_digest
from ..model.locate import ALIASES, gguf_of, present
from .elsewhere import folders_with
from .home import spelled
from .names import listed, same_name
from .saved import Saved, StoreFolder, chains_of_all, describe, is_left_behind, store_folders
from .store_cap import first_to_go, left_words

_WORTH_COMPACTING = 1.1
"""The ratio of file to live bytes from which on a file is compacted."""


def chosen_folders(root: Path, model: str | None, dtype: str | None, folder: str | None) -> list[Path]:
    """The models' folders in the store `root`; of one model (however it is spelled), dtype or folder name where that is
    given.

    Raises ValueError for a model that is neither in the store nor on this machine, a dtype that there is not, and a
    folder that is not there: that nothing was saved would be no answer.
    """
    everything = found = store_folders(root)
    if folder is not None:
        found = [path for path in found if path.name.startswith(folder)]
        if not found:
            raise ValueError(f"no folder of the store {root} begins with {folder!r}; {_there(everything)}")
    if model is not None:
        is_it = _Spelled(model)
        if not (is_it.may_be or any(map(is_it.model_of, everything))):
            raise ValueError(f"no model {model!r} is on this machine or in the store {root}; {_there(everything)}")
        found = [path for path in found if is_it.model_of(path)]
    if dtype is not None and dtype not in DTYPES:
        raise ValueError(f"dtype is {', '.join(DTYPES)} or auto, not {dtype!r}")
    if dtype is not None:
        found = [path for path in found if describe(path).get("dtype") == f"torch.{dtype}"]
    return found


def _there(folders: list[Path]) -> str:
    models = sorted({f"{describe(path).get('model', '?')} ({path.name})" for path in folders})
    return f"it has {', '.join(models) or 'nothing'}"


class _Spelled:
    """A model by any of its names: one that its folder was opened under, another path to it, or a copy of it."""

    def __init__(self, model: str) -> None:
        self._name, self._model = spelled(model), model
        self._directories: list[Path] | None = None

    @property
    def may_be(self) -> bool:
        """True if some model can be called that: an alias, a hub id, or a model on this machine."""
        is_hub_id = self._model.count("/") == 1 and not self._model.startswith((".", "/", "~"))
        return is_hub_id or self._model in ALIASES or self._has_gguf() or bool(self._present())

    def _has_gguf(self) -> bool:
        try:
            return bool(gguf_of(self._model))
        except ModelFileError:  # parts are missing, or there are several models
            return os.path.exists(os.path.expanduser(self._model))

    def model_of(self, folder: Path) -> bool:
        said = describe(folder)
        names = {*said["names"], str(said.get("model"))} if said else set()
        if self._name in names or os.path.realpath(self._name) in map(os.path.realpath, filter(os.path.isabs, names)):
            return True
        return any(self._is_same(directory, said) for directory in self._present())

    def _present(self) -> list[Path]:
        if self._directories is None:
            self._directories = present(self._model)
        return self._directories

    def _is_same(self, directory: Path, said: dict[str, Any]) -> bool:
        """True if a folder was made for the model in `directory`, whose file or name may be another one."""
        try:
            gguf = gguf_digest(directory)
            if gguf is not None and gguf == said.get("gguf"):
                return True
            name = model_key if "identity" in said else weights_digest  # an earlier version wrote no identity
            return bool(said.get("weights") == name(directory))
        except (ModelFileError, OSError):
            return False


@dataclass(frozen=True, slots=True)
class Found:
    """A session and its folder; `error` says why it cannot be read."""

    folder: Path
    name: str
    saved: Saved | None
    num_bytes: int
    """Bytes of its record and its pages, including pages that other sessions share."""
    error: RecordError | None = None
    state_bytes: int = 0
    """Bytes of the states under its pages, which serve other conversations that begin alike."""


def sessions_in(folder: Path) -> Iterator[Found]:
    with StoreFolder(folder) as store:
        sizes, states = store.chain_bytes(), store.disk.state_sizes()
        for name in store.disk.session_names():
            try:
                saved = store.session(name)
            except RecordError as error:
                yield Found(folder, name, None, 0, error)
                continue
            if saved is not None:
                chains = set(saved.chains)
                num_bytes = saved.record_bytes + sum(sizes.get(chain, 0) for chain in chains)
                state_bytes = sum(states.get(chain, 0) for chain in chains)
                yield Found(folder, name, saved, num_bytes, state_bytes=state_bytes)


def find_session(folders: list[Path], name: str, everywhere: list[Path]) -> Found:
    """The one session of that name in `folders`, which are some of those `everywhere` in the store.

    Raises SessionError if there is none, or one in several folders; StoreUnavailableError if it may be in a folder that
    cannot be opened.
    """
    everything: list[Found] = []
    closed: list[StoreUnavailableError] = []
    for folder in folders:
        try:
            everything += sessions_in(folder)
        except StoreUnavailableError as error:
            closed.append(error)
    names = [found.name for found in everything]
    called = same_name(name, names)
    named = [found for found in everything if found.name == called]
    if not named and closed:
        raise closed[0]
    if not named:
        others = folders_with(name, [folder for folder in everywhere if folder not in folders])
        raise SessionError(f"no session {name!r}; {listed(name, names)}{_also_in(others)}")
    if len(named) > 1:
        places = ", ".join(found.folder.name for found in named)
        raise SessionError(f"{len(named)} sessions are called {name!r}; choose one with --in: {places}")
    return named[0]


def _also_in(folders: list[Path]) -> str:
    """Say which folders have what was not found in those that were asked for."""
    if not folders:
        return ""
    places = [f"--in {folder.name} ({_called(folder)})" for folder in folders]
    return f"; there is one elsewhere: {', or '.join(places)}"


def _called(folder: Path) -> str:
    said = describe(folder)
    return f"{said.get('model', '?')}, {str(said.get('dtype', '?')).removeprefix('torch.')}"


@dataclass(slots=True)
class Collected:
    """The results of a collection."""

    freed_bytes: int = 0
    left_bytes: int = 0
    num_records: int = 0
    removed_sessions: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def collect(folders: list[Path], max_bytes: int | None) -> Collected:
    """Remove what no saved session refers to, and give the room back to the file system.

    With `max_bytes` only as much as makes the folders fit together: unsaved prefixes first, in the folder
    that was used longest ago first; then, if need be, the sessions that were used longest ago. Folders that
    an earlier version of a model left go before either.
    Nothing is removed that a running program may be using, and nothing at all from a folder of which it is not known
    which pages its sessions need.
    """
    done = Collected()
    before, everything = _size(folders), folders
    folders = [folder for folder in folders if _may_go(folder, done)]
    if max_bytes is None:
        for folder in folders:
            with StoreFolder(folder) as store:
                done.num_records += store.remove_unused()
    else:
        _shrink(folders, max_bytes - _size([folder for folder in everything if folder not in folders]), done)
    for folder in folders:
        _compact(folder, done, always=max_bytes is not None and _size(everything) > max_bytes)
        if is_left_behind(folder) and (names := _session_names(folder)):
            done.notes.append(
                f"{folder.name}{left_words(folder)}: what stays of it are the sessions {', '.join(names)}; "
                "`stratakv sessions rm` removes them"
            )
    done.left_bytes = _size(everything)
    done.freed_bytes = before - done.left_bytes
    if max_bytes is not None and done.left_bytes > max_bytes:
        done.notes.append(f"{done.left_bytes} bytes are left, more than {max_bytes}: the rest is in use or bookkeeping")
    return done


def _may_go(folder: Path, done: Collected) -> bool:
    """True if it is known which pages of a folder are needed; if not, `done` says why."""
    try:
        with StoreFolder(folder) as store:
            chains_of_all(store.disk)
            done.num_records += store.disk.delete_nameless()
    except (UnknownPagesError, StoreUnavailableError) as error:
        done.notes.append(str(error))
        return False
    return True


def _shrink(folders: list[Path], max_bytes: int, done: Collected) -> None:
    """Sweep unsaved prefixes, then sessions one by one, until the live bytes fit."""
    for folder in first_to_go(folders):
        excess = _live(folders) - max_bytes
        if excess <= 0:
            return
        with StoreFolder(folder) as store:
            done.num_records += store.remove_unused(excess)
    everything = [found for folder in folders for found in sessions_in(folder) if found.saved is not None]
    for found in sorted(everything, key=lambda found: (not is_left_behind(found.folder), _last_use(found))):
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


def _session_names(folder: Path) -> list[str]:
    with StoreFolder(folder) as store:
        return store.disk.session_names()


def _live(folders: list[Path]) -> int:
    total = 0
    for folder in folders:
        with StoreFolder(folder) as store:
            total += store.disk.used_bytes
    return total


def _size(folders: list[Path]) -> int:
    return sum((folder / "data.mdb").stat().st_size for folder in folders)
