"""The choice of a model's folder in a store: one folder, however the model is spelled (docs/decisions/0020).

A folder is named `<model>_<fingerprint in hex>`. The text before the fingerprint is for people; a folder of the right
fingerprint is used whatever it is called. A model may have more than one folder all the same: earlier versions made
one for each spelling. Then the largest is used, since it is the one that is in use, and the others' sessions are found
in them (`elsewhere`). Each says in its `config.json` which model's it is (`identity`), so that one that has an older
fingerprint is found again by a later spelling.

A model that was updated under its old name leaves a folder behind: the name moves from `names` to `former_names`, and
a folder without any other name is the first to give room (`store_cap`).
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...storage.disk.share import alone_in
from ...storage.errors import store_unavailable
from ...storage.files.file_names import as_text
from ...storage.files.private import private_file, private_folder
from ..model.gguf.files import title
from ..model.identity import fingerprint
from ..model.locate import ALIASES, file_name
from .saved import describe, fingerprint_of, is_of_later_format

_MAX_NAMES = 16
"""The most spellings that are remembered of one model, the latest first."""


@dataclass(frozen=True, slots=True)
class Home:
    """The folder of a model, and the fingerprint that its records carry."""

    folder: Path
    fingerprint: bytes


def spelled(model: str) -> str:
    """A name that means the same from everywhere, and is text: an alias or a hub id as it is, a path in full."""
    if model in ALIASES:
        return model
    path = Path(model).expanduser()
    return as_text(os.path.abspath(path) if path.exists() else model)


def is_lasting(name: str) -> bool:
    """True if `spelled` can have made the name: earlier versions wrote down what was typed, `.` included."""
    return name in ALIASES or os.path.isabs(name) or (name.count("/") == 1 and name[0] not in "./~")


def prefix(model: str) -> str:
    """The text that a folder's name begins with."""
    path = Path(spelled(model))
    return file_name(title(path))


def find_home(
    root: Path, model: str, identity: dict[str, Any], also: dict[str, Any], former: Callable[[], dict[str, Any]]
) -> Home:
    """The folder in `root` of the model that is spelled `model`; made if there is none.

    Args:
        identity: the facts that the fingerprint is made from. also: further entries of `config.json`.
        former: gives the identity of earlier versions; asked only where there are folders of theirs.

    Raises StoreUnavailableError: a folder cannot be made or written.
    """
    name = fingerprint(identity)
    new = root / f"{prefix(model)}_{name.hex()}"
    try:
        stamped = {folder: describe(folder).get("identity") for folder in _folders(root)}
        older = fingerprint(former()) if None in stamped.values() else None
        _make(root)
        with alone_in(root):
            mine = [folder for folder in _folders(root) if _belongs(folder, name, older)]
            home = max(mine, key=lambda folder: (_size(folder), folder.name), default=new)
            private_folder(home)
            said = {**identity, **also, "identity": name.hex()}
            for folder in {home, *mine}:
                _stamp(folder, spelled(model), said, is_ours=folder == home)
            for folder in _folders(root):
                if folder not in (home, *mine):
                    _leave_behind(folder, spelled(model), said)
    except OSError as error:
        raise store_unavailable(new, error) from error
    return Home(home, fingerprint_of(home))


def twins(folder: Path) -> list[Path]:
    """The other folders of the model whose folder this is, in order of their names."""
    mine = _identity(folder)
    return [other for other in _folders(folder.parent) if other.name != folder.name and _identity(other) == mine]


def _identity(folder: Path) -> Any:
    return describe(folder).get("identity", fingerprint_of(folder).hex())


def _belongs(folder: Path, name: bytes, older: bytes | None) -> bool:
    return fingerprint_of(folder) in (name, older) or describe(folder).get("identity") == name.hex()


def _folders(root: Path) -> list[Path]:
    """The folders in a store that are named as a model's, also those that have no data file yet."""
    return sorted(path for path in root.iterdir() if fingerprint_of(path) and path.is_dir()) if root.is_dir() else []


def _size(folder: Path) -> int:
    data = folder / "data.mdb"
    return data.stat().st_size if data.is_file() else 0


def _stamp(folder: Path, model: str, said: dict[str, Any], *, is_ours: bool) -> None:
    """Write in the folder whose it is, if that is new. A failure matters only for a folder that is used and does not
    say so yet. Text of a later version stays: that version finds the folder by it."""
    if is_of_later_format(folder):
        return
    known = describe(folder)
    former = [name for name in known.get("former_names", []) if name != model]
    names = list(dict.fromkeys([model, *_names(folder)]))[:_MAX_NAMES]
    more = {"former_names": former} if former else {}
    try:
        _write(folder, {"model": model, "names": names, **more, **said})
    except OSError:
        if is_ours and not known:
            raise


def _leave_behind(folder: Path, model: str, said: dict[str, Any]) -> None:
    """Note in another folder that its model is not called `model` any more, if it was, and that name means another
    model now."""
    known, names = describe(folder), _names(folder)
    if model not in names or is_of_later_format(folder) or not _is_other_model(known, said):
        return
    former = [model, *(name for name in known["former_names"] if name != model)]
    with suppress(OSError):  # the folder is another model's
        path = folder / "config.json"
        whole = json.loads(path.read_text())
        _write(folder, {**whole, "names": [name for name in names if name != model], "former_names": former})


def _is_other_model(known: dict[str, Any], said: dict[str, Any]) -> bool:
    """True if the folder can be told to be another model's. A GGUF file's tensors differ from dtype to dtype, its
    digest does not; of one dtype, tensors or settings differ only if an earlier version read the file in another
    way."""
    files = {known.get("gguf"), said.get("gguf")}
    if files == {None} or (
        len(files) == 1 and all(known.get(name) == said.get(name) for name in ("dtype", "products"))
    ):
        return known.get("format") == said.get("format") and known.get("weights") != said.get("weights")
    return None not in files and len(files) == 2


def _names(folder: Path) -> list[str]:
    """The names under which the folder's model was opened and that mean the same from everywhere."""
    known = describe(folder)
    former = known.get("former_names", [])
    names = [*known.get("names", []), str(known.get("model", ""))]
    return [name for name in dict.fromkeys(names) if is_lasting(name) and name not in former]


def _write(folder: Path, said: dict[str, Any]) -> None:
    private_file(folder / "config.json", json.dumps(said, indent=2) + "\n")


def _make(root: Path) -> None:
    for missing in reversed([path for path in (root, *root.parents) if not path.exists()]):
        missing.mkdir(mode=0o700, exist_ok=True)
