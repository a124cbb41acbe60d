"""The sessions of a store folder as far as they can be read without their model: for people and for housekeeping.

A session's payload is a safetensors file (`session`); here only its header and its chains are read
(`session_header`), so neither torch nor a model is asked for.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...storage import CHAIN_BYTES, DiskTier, LaterVersionError, RecordError, UnknownPagesError
from ..model.identity import is_later
from .names import rm_command
from .session_header import header_of, is_time

_FOLDER = re.compile(r".*_([0-9a-f]{32})", re.DOTALL)
_MAX_DESCRIPTION = 1 << 20
_ROOM_BYTES = 64 << 20
"""Bytes that housekeeping may add to a file while it deletes."""


@dataclass(frozen=True, slots=True)
class Saved:
    """One saved session. Times are in seconds since 1970, None where nothing was noted."""

    name: str
    num_tokens: int
    record_bytes: int
    index: str
    chains: list[bytes]
    """One chain per page of the context; each layer has a page under it."""
    messages: list[dict[str, str]]
    saved_at: float | None
    used_at: float | None


def chains_of_all(disk: DiskTier) -> set[bytes]:
    """The page chains that sessions refer to.

    Raises UnknownPagesError if that is not known of some session. Then no page may go, for that session may need it.
    """
    if is_of_later_format(disk.folder):
        raise _unknown(disk, "it was written by a later version of stratakv")
    found: set[bytes] = set()
    for name in disk.session_names():
        try:
            payload = disk.get_session(name)
            if payload is not None:
                found.update(header_of(payload)[1])
        except LaterVersionError as error:
            raise _unknown(disk, f"session {name!r} was written by a later version of stratakv") from error
        except RecordError as error:
            chains = _chains_of_damaged(disk, name)
            if chains is None:
                raise _unknown(
                    disk,
                    f"session {name!r} is damaged; to remove it: {rm_command(name, disk.folder)}",
                ) from error
            found |= chains
    if later_nameless(disk):
        raise _unknown(disk, "a session in it was written by a later version of stratakv")
    return found


def _chains_of_damaged(disk: DiskTier, name: str) -> set[bytes] | None:
    """The chains that a damaged session refers to, if the damage is elsewhere in it: then there are pages under each of
    them, since a chain with a wrong bit would name none. None if that cannot be told: its pages may be any."""
    try:
        _, chains = header_of(disk.unverified_session(name))
    except RecordError:
        return None
    stored = {key[-CHAIN_BYTES:] for key, _ in disk.page_sizes()}
    return set(chains) if stored.issuperset(chains) else None


def needed_chains(disk: DiskTier) -> set[bytes]:
    """The same as `chains_of_all`, with an error for whoever wants to store more."""
    try:
        return chains_of_all(disk)
    except UnknownPagesError as error:
        raise UnknownPagesError(f"{error}; to store more, raise disk_gb or use another folder (path=)") from error


def later_nameless(disk: DiskTier) -> set[bytes]:
    """The keys that name no session here and under which a later version wrote one: there they may be names."""
    found = set()
    for key in disk.nameless_sessions():
        try:
            header_of(disk.session_at(key) or b"")
        except LaterVersionError:
            found.add(key)
        except RecordError:
            continue
    return found


def _unknown(disk: DiskTier, why: str) -> UnknownPagesError:
    return UnknownPagesError(f"no page is removed from {disk.folder}, since it is not known which are needed: {why}")


class StoreFolder:
    """One model's folder in a store, opened for looking and housekeeping. Close it, or use `with`.

    Args:
        room_bytes: bytes that its file may grow by while records are deleted.

    Raises StoreUnavailableError: it cannot be opened.
    """

    def __init__(self, folder: Path, room_bytes: int = _ROOM_BYTES) -> None:
        self.folder, name = folder, fingerprint_of(folder)
        assert name, f"{folder} is not named MODEL_FINGERPRINT"
        size = (folder / "data.mdb").stat().st_size
        self.disk = DiskTier(folder, size + room_bytes, name, None)

    @property
    def description(self) -> dict[str, Any]:
        """The content of `config.json` as by `describe`; empty if it cannot be read."""
        return describe(self.folder)

    def __enter__(self) -> StoreFolder:
        return self

    def __exit__(self, *_: object) -> None:
        self.disk.close()

    def session(self, name: str) -> Saved | None:
        """The session of that name; None if there is none. Raises RecordError if it is damaged, or
        LaterVersionError."""
        payload = self.disk.get_session(name)
        if payload is None:
            return None
        header, chains = header_of(payload)
        used_at = self.disk.session_used_at(name)
        return Saved(
            name, header["num_tokens"], len(payload), header["index"], chains,
            header["notes"].get("messages", []), header.get("saved_at"), used_at if is_time(used_at) else None,
        )  # fmt: skip

    def chain_bytes(self) -> dict[bytes, int]:
        """Bytes of all page records per chain, over the layers."""
        sizes: dict[bytes, int] = defaultdict(int)
        for key, size in self.disk.page_sizes():
            sizes[key[-CHAIN_BYTES:]] += size
        return sizes

    def damage(self) -> Iterator[str]:
        """Read everything that is stored. Yields a line for each thing that should be usable, and is not."""
        users: dict[bytes, set[str]] = defaultdict(set)
        for name in self.disk.session_names():
            try:
                saved = self.session(name)
            except LaterVersionError:
                continue
            except RecordError as error:
                yield f"session {name!r}: {error}"
                continue
            for chain in saved.chains if saved is not None else []:
                users[chain].add(name)
        for key in sorted({*self.disk.nameless_sessions()} - later_nameless(self.disk)):
            yield f"session record {key.hex()}: no session can be called that; `stratakv sessions gc` removes it"
        layers, present = set(), defaultdict(set)
        for key, _ in self.disk.page_sizes():
            layers.add(key[:-CHAIN_BYTES])
            present[key[-CHAIN_BYTES:]].add(key[:-CHAIN_BYTES])
        for key, why in self.disk.damaged_pages():
            yield _page_line(key, why, users[key[-CHAIN_BYTES:]])
        for chain, names in users.items():
            for layer in sorted(layers - present[chain]):
                yield _page_line(layer + chain, "the record is missing", names)
        for chain, why in self.disk.damaged_states():
            yield f"state {chain.hex()}: {why}"

    def later(self) -> Iterator[str]:
        """Yield a line for everything that a later version of stratakv wrote: it is no damage, and nobody here can
        check it."""
        if is_of_later_format(self.folder):
            yield "the folder was written by a later version of stratakv"
        for name in self.disk.session_names():
            try:
                self.session(name)
            except LaterVersionError as error:
                yield f"session {name!r} was written by a later version of stratakv ({error})"
            except RecordError:
                continue
        for kind, count in {"sessions": len(later_nameless(self.disk)), **self.disk.num_later()}.items():
            if count:
                yield f"{count} {kind} were written by a later version of stratakv"

    def remove_unused(self, num_bytes: int | None = None) -> int:
        """Delete pages and states that no session refers to (as `DiskTier.sweep`). Returns how many.

        Raises UnknownPagesError, as `chains_of_all`.
        """
        kept = chains_of_all(self.disk)
        return self.disk.sweep(lambda key: key[-CHAIN_BYTES:] in kept, num_bytes)


def _page_line(key: bytes, why: str, names: set[str]) -> str:
    whose = f"of {', '.join(sorted(map(repr, names)))}" if names else "of no session"
    return f"page {key.hex()} (layer {int.from_bytes(key[:-CHAIN_BYTES], 'big')}, {whose}): {why}"


def fingerprint_of(folder: Path) -> bytes:
    """The fingerprint in a folder's name; empty if that is no store folder's name."""
    match = _FOLDER.fullmatch(folder.name)
    return bytes.fromhex(match[1]) if match is not None else b""


def is_of_later_format(folder: Path) -> bool:
    """True if a later version of stratakv has had the folder: it is not known what else that version keeps there."""
    return is_later(describe(folder).get("format"))


def describe(folder: Path) -> dict[str, Any]:
    """The entries of `config.json` that are text or numbers for people; empty if there is no such file, or it is none
    of ours."""
    path = folder / "config.json"
    try:
        text = path.read_text() if path.is_file() and path.stat().st_size <= _MAX_DESCRIPTION else ""
        found = json.loads(text)
    except (OSError, ValueError, RecursionError):
        return {}
    inner = found if isinstance(found, dict) else {}
    return _printable(inner) | {
        "layout": _printable(inner.get("layout")),
        "names": _texts(inner.get("names")),
        "former_names": _texts(inner.get("former_names")),
    }


def is_left_behind(folder: Path) -> bool:
    """True if every name under which the folder's model was opened means another model by now (`home`)."""
    said = describe(folder)
    return bool(said.get("former_names")) and not said["names"]


def _texts(found: Any) -> list[str]:
    return [text for text in found if _is_text(text)] if isinstance(found, list) else []


def _printable(found: Any) -> dict[str, Any]:
    """The numbers of an object, and those of its texts that no terminal obeys."""
    pairs = found.items() if isinstance(found, dict) else ()
    return {name: value for name, value in pairs if isinstance(value, int) or _is_text(value)}


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and value.isprintable()


def store_folders(root: Path) -> list[Path]:
    """The models' folders in a store, in order."""
    if not root.is_dir():
        return []
    return sorted(path for path in root.iterdir() if fingerprint_of(path) and (path / "data.mdb").is_file())
