"""The cap of a store folder, which all models, dtypes, page sizes and codecs in it share (docs/decisions/0025).

By default it is half of what the disk has free or the store holds already: bytes written at one start do not lower
the next one's cap. Where it is reached, room is made in other folders first: in those that no model reaches any more,
then in the one that was used longest ago. They give up what no saved session refers to, all of it at once, since
giving room back to the file system means copying what stays. Folders that somebody has open stay as they are.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from ...storage import DiskTier, StorageError, StorageFullError
from ...storage.disk.folder_lease import is_open
from ...storage.disk.share import BOOKKEEPING_BYTES, DATA, bytes_in, claimed_bytes, spare_bytes
from ..engine.machine_caps import disk_free
from .home import Home
from .saved import StoreFolder, describe, is_left_behind, store_folders

if TYPE_CHECKING:  # looking after sessions loads no tensor library
    from ..api.config import KVConfig
    from ..engine.planner import Plan

logger = logging.getLogger(__name__)

GB = 10**9
_MOST_BY_DEFAULT = 64 * GB
_LEAST_GAIN = 1 << 20
"""The least bytes that a higher cap must gain: a disk that has no more is full."""
_SPARE_SHARE = 16
"""A store that is shortened to its cap is shortened by 1 / `_SPARE_SHARE` of the cap more: the next page would be too
many."""


def default_cap(root: Path) -> int:
    """The bytes that the store in `root` may take if nobody says how many. Raises OSError.

    Half of the disk's free bytes and its own together, at most 64 GB; never less than it has and takes to be opened,
    however full the disk has become: saved sessions stay usable.
    """
    own = _taken(root)
    return max(own + BOOKKEEPING_BYTES if own else 0, min(_MOST_BY_DEFAULT, (disk_free(root) + own) // 2))


def with_disk(plan: Plan, config: KVConfig, folder: Path) -> Plan:
    """`plan` with the disk tier that is configured in the store `folder`, or that is the default there."""
    disk = int(config.disk_gb * GB) if config.disk_gb is not None else default_cap(folder)
    if config.disk_gb == 0:
        return replace(plan, disk_bytes=0, disk_knob="allow the disk tier (disk_gb)")
    knob = remedy(folder, disk, is_default=config.disk_gb is None)
    return replace(plan, disk_bytes=disk, store_bytes=disk, disk_knob=knob)


def without_disk(plan: Plan, folder: Path) -> Plan:
    """`plan` where the disk has no room for a store in `folder`."""
    return replace(plan, disk_bytes=0, disk_knob=make_room(folder))


def open_disk(home: Home, cap_bytes: int, knob: str) -> DiskTier | None:
    """Open the disk tier of one folder under the cap of the store around it. None, and a line in the log, if the other
    folders leave it nothing.

    Args:
        knob: words for messages that say what lets the store hold more.

    Raises StoreUnavailableError.
    """
    root, others = home.folder.parent, _Others(home.folder, cap_bytes)
    _shorten(root, home.folder, cap_bytes, others)
    while True:
        try:
            disk = DiskTier(home.folder, cap_bytes, home.fingerprint, None, is_shared=True)
            break
        except StorageFullError as error:
            if others.give_way(1):
                continue
            logger.warning("%s: going on in memory, nothing is kept; to keep something %s", error, knob)
            return None
    disk.give_way, disk.remedy = others.give_way, knob
    in_use = in_use_beside(home.folder)
    if in_use:
        logger.warning(
            "the store %s has one cap of %d bytes: other folders of it that are in use take %d, %d are left here",
            root, cap_bytes, in_use, max(0, cap_bytes - in_use),
        )  # fmt: skip
    return disk


def beside(mine: Path) -> list[Path]:
    """The other folders of the store around `mine`."""
    return [folder for folder in store_folders(mine.parent) if folder.name != mine.name]


def in_use_beside(folder: Path) -> int:
    """Bytes of the cap that other folders of the store have and that nobody can take from them now."""
    return sum(map(claimed_bytes, filter(is_open, beside(folder))))


def remedy(root: Path, cap_bytes: int, *, is_default: bool) -> str:
    """Words for messages that say what lets a store hold more than its cap. Raises OSError."""
    if not is_default:
        return "raise disk_gb"
    if disk_free(root) + _taken(root) - cap_bytes < _LEAST_GAIN:
        return make_room(root)
    return f"set disk_gb above {cap_bytes / GB:.3g}, if the disk has room for it,"


def make_room(root: Path) -> str:
    """Words for messages that say what helps where the disk itself is full. Raises OSError."""
    return (
        f"make room on the disk of {root}, which has {disk_free(root) / GB:.3g} GB free, or name another folder (path=)"
    )


def told_about(folders: list[Path]) -> list[str]:
    """Describe folders of a store for people, a line each: the largest first."""
    lines = []
    for folder in sorted(folders, key=bytes_in, reverse=True):
        said = describe(folder)
        dtype = str(said.get("dtype", "?")).removeprefix("torch.")
        state = " · in use" if is_open(folder) else left_words(folder)
        lines.append(f"{bytes_in(folder) / 1e6:.1f} MB {said.get('model', folder.name)} · {dtype}{state}")
    return lines


def left_words(folder: Path) -> str:
    """Words for a folder that no model reaches any more; empty for other folders."""
    return " · left by an earlier version of the model" if is_left_behind(folder) else ""


def first_to_go(folders: list[Path]) -> list[Path]:
    """Folders in the order in which they give room: those that no model reaches any more, then by their last use."""
    return sorted(folders, key=lambda folder: (not is_left_behind(folder), _written(folder)))


class _Others:
    """The folders of a store beside one's own, which can be asked for room."""

    def __init__(self, mine: Path, cap_bytes: int) -> None:
        self._mine, self._room_bytes = mine, spare_bytes(cap_bytes)
        self._given: dict[str, int] = {}
        """The last write, in nanoseconds, of each folder that has given all it can, by the folder's name."""

    def give_way(self, num_bytes: int) -> int:
        """Make other folders smaller by `num_bytes`, as far as they may be. Returns by how many bytes they are
        smaller."""
        freed = 0
        for folder in first_to_go(beside(self._mine)):
            if freed < num_bytes and not is_open(folder) and self._given.get(folder.name) != _written(folder):
                freed += give_room(folder, self._room_bytes)
                self._given[folder.name] = _written(folder)
        return freed


def give_room(folder: Path, room_bytes: int, num_bytes: int | None = None) -> int:
    """Remove everything from a folder that no saved session refers to, and shorten its file. Returns by how many bytes
    it is smaller.

    Args:
        room_bytes: bytes that it may take for that.
        num_bytes: stop when records of so many bytes are gone, those used longest ago first. None: remove all.
    """
    before = bytes_in(folder)
    try:
        with StoreFolder(folder, room_bytes) as store:
            if store.remove_unused(num_bytes) or store.disk.file_bytes > store.disk.used_bytes:
                store.disk.compact()
    except (StorageError, OSError) as error:
        logger.warning("%s keeps what it has: %s", folder, error)
    freed = max(0, before - bytes_in(folder))
    if freed:
        logger.info("%s gave %d bytes of unsaved pages to other folders of the store", folder, freed)
    return freed


def _shorten(root: Path, mine: Path, cap_bytes: int, others: _Others) -> None:
    """Shorten the store to a cap that is smaller than what it has, as far as saved sessions allow."""
    excess = _taken(root) - cap_bytes
    if excess > 0:
        others.give_way(excess)
        excess = _taken(root) - cap_bytes
    if excess > 0 and (mine / DATA).is_file() and not is_open(mine):
        give_room(mine, spare_bytes(cap_bytes), excess + cap_bytes // _SPARE_SHARE)
        excess = _taken(root) - cap_bytes
    if excess > 0:
        logger.warning(
            "the store %s has %d bytes more than its cap of %d, in saved sessions or in use: they stay, and little or "
            "nothing is added to them; raise disk_gb or remove sessions with `stratakv sessions rm`",
            root, excess, cap_bytes,
        )  # fmt: skip


def _taken(root: Path) -> int:
    return sum(map(bytes_in, store_folders(root)))


def _written(folder: Path) -> int:
    """Time of the last write in nanoseconds since 1970; 0 if the file is gone."""
    try:
        return (folder / DATA).stat().st_mtime_ns
    except FileNotFoundError:
        return 0
