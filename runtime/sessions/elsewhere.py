"""Sessions that are not where they are looked for: in another folder of the same model, or of other settings.

A model may have several folders (`home`). A session of another one of them is brought over when it is asked for, with
its pages, so that it costs no prefill, and is gone from there then: one name, one session. Sessions of
other settings or of another model cannot be used here; a message says where they are and what to ask for.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ...storage import DiskTier, StorageFullError, StoreUnavailableError, page_key
from .home import twins
from .names import same_name
from .saved import Saved, StoreFolder, describe, store_folders

logger = logging.getLogger(__name__)

_MAX_PLACES = 3
"""The most places named in one message."""


def names_in_twins(disk: DiskTier) -> list[str]:
    """The names of the sessions in the other folders of the model whose folder `disk` is."""
    found: list[str] = []
    for folder in _twins(disk):
        with _opened(folder) as store:
            found += store.disk.session_names() if store is not None else []
    return found


def place_in_twins(disk: DiskTier, name: str) -> Path | None:
    """The other folder of this model that has a session of that name; None if there is none."""
    return next(iter(folders_with(name, _twins(disk))), None)


def folders_with(name: str, folders: list[Path]) -> list[Path]:
    """The folders among `folders` that have a session of that name."""
    found = []
    for folder in folders:
        with _opened(folder) as store:
            if store is not None and same_name(name, store.disk.session_names()) is not None:
                found.append(folder)
    return found


def bring_over(disk: DiskTier, name: str, layers: list[int], make_room: Callable[[int], int]) -> None:
    """Move a session of that name, with the pages of `layers`, from another folder of this model to this one, if there
    is one.

    Args:
        make_room: removes that many bytes of records that nobody needs here.

    Raises RecordError if it is damaged, StorageFullError if there is no room here; it is still there then.
    """
    folder = place_in_twins(disk, name)
    if folder is None:
        return
    with _opened(folder) as store:
        called = same_name(name, store.disk.session_names()) if store is not None else None
        saved = store.session(called) if store is not None and called is not None else None
        if store is None or called is None or saved is None:
            return
        try:
            _move(store.disk, disk, saved, layers)
        except StorageFullError as error:
            needed = saved.record_bytes + sum(store.chain_bytes().get(chain, 0) for chain in saved.chains)
            if not (error.is_at_cap and make_room(needed)):
                raise
            _move(store.disk, disk, saved, layers)
    logger.info("session %r was moved from %s to %s", called, folder, disk.folder)


def _move(source: DiskTier, target: DiskTier, saved: Saved, layers: list[int]) -> None:
    """Move a session, its pages first. It goes from `source` only when all of it is durable in `target`."""
    target.copy_pages(source, [page_key(layer, chain) for layer in layers for chain in saved.chains])
    payload = source.get_session(saved.name)
    if payload is not None:
        target.put_session(saved.name, payload, only_over=())
        source.delete_session(saved.name)


def told_where(disk: DiskTier, name: str) -> str:
    """Say where else sessions of that name are, and which settings find them; empty if there are none."""
    mine = describe(disk.folder)
    others = [folder for folder in store_folders(disk.folder.parent) if folder.name != disk.folder.name]
    places = [f"{_differences(mine, describe(folder))} (folder {folder.name})" for folder in folders_with(name, others)]
    more = f" and in {len(places) - _MAX_PLACES} more folders" if len(places) > _MAX_PLACES else ""
    listed = ", and with ".join(places[:_MAX_PLACES])
    return f"; there is one with {listed}{more}" if places else ""


def names_by_settings(disk: DiskTier) -> dict[str, list[str]]:
    """The names of this model's sessions that other settings find, by those settings as Python's arguments."""
    mine, twins_too = describe(disk.folder), {disk.folder.name, *(folder.name for folder in twins(disk.folder))}
    found: dict[str, list[str]] = {}
    for folder in store_folders(disk.folder.parent):
        said = describe(folder)
        if folder.name in twins_too or not _same_model(mine, said):
            continue
        with _opened(folder) as store:
            names = store.disk.session_names() if store is not None else []
        if names:
            found.setdefault(_differences(mine, said), []).extend(names)
    return found


def _twins(disk: DiskTier) -> list[Path]:
    return [folder for folder in twins(disk.folder) if (folder / "data.mdb").is_file()]


@contextmanager
def _opened(folder: Path) -> Iterator[StoreFolder | None]:
    """The opened folder. None, and a line in the log, if it cannot be opened, since nobody asked for this folder."""
    try:
        store = StoreFolder(folder)
    except (StoreUnavailableError, OSError) as error:
        logger.info("%s is not looked into: %s", folder, error)
        yield None
        return
    with store:
        yield store


def _differences(mine: dict[str, Any], other: dict[str, Any]) -> str:
    """The settings to ask for to find sessions of the `other` folder, as Python's arguments."""
    found = []
    if not _same_model(mine, other):
        found.append(f"model={str(other.get('model', '?'))!r}")
    dtypes = [str(said.get("dtype", "?")).removeprefix("torch.") for said in (mine, other)]
    caches = [said.get("layout", {}).get("dtype", "?") for said in (mine, other)]
    if dtypes[0] != dtypes[1]:
        found.append(f"dtype={dtypes[1]!r}")
    weights = [_weights(said) for said in (mine, other)]
    if weights[0] != weights[1]:
        found.append(f"weights={weights[1]!r}")
    if caches[0] != caches[1] and caches != dtypes:
        found.append(f"KVConfig(dtype={caches[1]!r})")
    for name in ("page_size", "codec"):
        values = [(said.get("layout", {}) if name == "page_size" else said).get(name, "zstd") for said in (mine, other)]
        if values[0] != values[1]:
            found.append(f"{name}={values[1]!r}")
    return ", ".join(found) or "other settings"


def _weights(said: dict[str, Any]) -> str:
    """The weights to ask for. On a CPU int8 ones read prompts as the model's own do, and find the same sessions."""
    return str(said.get("products", "own"))


def _same_model(mine: dict[str, Any], other: dict[str, Any]) -> bool:
    """True if both folders are one model's, judged by the GGUF file, or by the weights; where an earlier version wrote
    a folder, by the model's name."""
    if mine.get("gguf") is not None and mine.get("gguf") == other.get("gguf"):
        return True
    if mine.get("format") == other.get("format"):
        return bool(mine.get("weights") == other.get("weights"))
    return Path(str(mine.get("model"))).name == Path(str(other.get("model"))).name
