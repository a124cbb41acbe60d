"""`stratakv sessions`: what is saved, how much room it takes, whether it is sound. No model is loaded."""

from __future__ import annotations

import math
import unicodedata
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .one_line import say
from .options import at_home, path, reading, real

if TYPE_CHECKING:
    from ...storage import RecordError
    from ..sessions.housekeeping import Found
    from ..sessions.saved import Saved

sessions = typer.Typer(help="Saved sessions.", no_args_is_help=True, rich_markup_mode=None)

_MOST_GB = 1e9
"""More gigabytes than any disk holds."""

StoreOption = Annotated[Path | None, path("--kv-dir", help="Store folder. Default: the user's cache directory.")]
ModelFilter = Annotated[
    str | None,
    typer.Option(
        "-m",
        "--model",
        metavar="MODEL",
        parser=reading(at_home),
        help="Only of this model, named as in chat. Default: of all.",
    ),
]
DtypeFilter = Annotated[str | None, typer.Option("--dtype", help="Only of this dtype. Default: of all.")]
_MAX_WIDTH = 40
"""The most cells of the column of names: one longer name must not push the others' columns off the screen."""
FolderOption = Annotated[
    str | None, typer.Option("--in", help="Only in the store's folder whose name begins like this.")
]


@sessions.command("list")
def sessions_list(
    model: ModelFilter = None, kv_dir: StoreOption = None, dtype: DtypeFilter = None, folder: FolderOption = None
) -> None:
    """The saved sessions of all models."""
    from ...storage import StoreUnavailableError
    from ..sessions.housekeeping import sessions_in
    from ..sessions.saved import describe, is_left_behind
    from ..sessions.store_cap import left_words

    rows: list[Found] = []
    places = _folders(kv_dir, model, dtype, folder)
    for place in places:
        try:
            rows += sessions_in(place)
        except StoreUnavailableError as error:
            say(f"{place.name} is left out: {error}")
    for place in filter(is_left_behind, places):
        num_bytes = (place / "data.mdb").stat().st_size
        say(
            f"{place.name} ({_size(num_bytes)}) was left by an earlier version of {describe(place).get('model', '?')}: "
            "it gives room before any other folder, and `stratakv sessions gc` removes what no session needs"
        )
    if not rows:
        print("no sessions")
        return
    width = min(_MAX_WIDTH, max(_cells(found.name) for found in rows))
    for found in rows:
        name = found.name + " " * (width - _cells(found.name))
        model_name = Path(str(describe(found.folder).get("model", found.folder.name))).name + left_words(found.folder)
        if found.saved is None:
            print(f"{name}  {_why(found.error)}: {found.error}  {model_name}")
            continue
        print(
            f"{name}  {found.saved.num_tokens:>8} tokens  {_size(found.num_bytes):>8}  "
            f"saved {_date(found.saved.saved_at)}  {model_name}"
        )


@sessions.command("show")
def sessions_show(
    name: str, model: ModelFilter = None, kv_dir: StoreOption = None, dtype: DtypeFilter = None,
    folder: FolderOption = None,
) -> None:  # fmt: skip
    """One session: its size, dates and index, and what its folder says about the model."""
    from ..sessions.saved import describe
    from ..sessions.store_cap import left_words

    found = _found(name, kv_dir, model, dtype, folder)
    saved = _readable(found)
    said = describe(found.folder)
    layout = said.get("layout", {})
    rows = {
        "session": saved.name,
        "model": f"{said.get('model', '?')}{left_words(found.folder)}",
        "dtype": f"{said.get('dtype', '?')}, cache {layout.get('dtype', '?')}",
        "weights": said.get("products", "own"),
        "tokens": saved.num_tokens,
        "pages": f"{len(saved.chains)} per layer, {layout.get('page_size', '?')} tokens each",
        "bytes": f"{found.num_bytes} ({_size(found.num_bytes)}), pages shared with other sessions included",
        "states": f"{found.state_bytes} ({_size(found.state_bytes)}) for other conversations; they give way first",
        "messages": len(saved.messages),
        "saved": _date(saved.saved_at),
        "last use": _date(saved.used_at),
        "index": saved.index,
        "folder": found.folder,
    }
    for label, value in rows.items():
        print(f"{label:9} {value}")


@sessions.command("rm")
def sessions_rm(
    name: str, model: ModelFilter = None, kv_dir: StoreOption = None, dtype: DtypeFilter = None,
    folder: FolderOption = None,
) -> None:  # fmt: skip
    """Delete a session. Its pages stay as cache until their room is needed; `gc` removes them now."""
    from ..sessions.saved import StoreFolder

    found = _found(name, kv_dir, model, dtype, folder)
    with StoreFolder(found.folder) as store:
        store.disk.delete_session(found.name)


@sessions.command("gc")
def sessions_gc(
    model: ModelFilter = None, kv_dir: StoreOption = None, dtype: DtypeFilter = None, folder: FolderOption = None,
    max_gb: Annotated[
        float | None,
        real(
            "--max-gb",
            help="Remove only what makes the store fit: unsaved prefixes that were used longest ago; if saved "
            "sessions alone are larger, those that were used longest ago. Default: everything unsaved.",
        ),
    ] = None,
) -> None:  # fmt: skip
    """Remove what no saved session refers to, and make the files smaller."""
    from ..sessions.housekeeping import collect

    if max_gb is not None and not 0 <= max_gb < math.inf:
        raise ValueError(f"--max-gb is a number of gigabytes from 0, not {max_gb}")
    most = None if max_gb is None else int(min(max_gb, _MOST_GB) * 10**9)
    done = collect(_folders(kv_dir, model, dtype, folder), most)
    for removed in done.removed_sessions:
        print(f"removed session {removed}")
    for note in done.notes:
        print(note)
    print(f"{done.num_records} records removed, {done.freed_bytes} bytes freed, {done.left_bytes} left")


@sessions.command("verify")
def sessions_verify(
    model: ModelFilter = None, kv_dir: StoreOption = None, dtype: DtypeFilter = None, folder: FolderOption = None
) -> None:
    """Read every record and check it; exit code 1 if any is damaged or missing."""
    from ...storage import LaterStoreError, StoreUnavailableError
    from ..sessions.saved import StoreFolder

    num_damaged = num_pages = num_later = 0
    for place in _folders(kv_dir, model, dtype, folder):
        try:
            with StoreFolder(place) as store:
                num_pages += store.disk.num_pages
                for line in store.damage():
                    num_damaged += 1
                    print(f"{place.name}: {line}")
                for line in store.later():
                    num_later += 1
                    print(f"{place.name}: {line}")
        except LaterStoreError as error:
            num_later += 1
            print(f"{place.name}: {error}")
        except StoreUnavailableError as error:
            num_damaged += 1
            print(f"{place.name}: {error}")
    later = f"; what a later version of stratakv wrote is not checked ({num_later})" if num_later else ""
    print(f"{num_pages} pages read, {num_damaged} damaged or missing{later}")
    if num_damaged:
        raise typer.Exit(1)


def _folders(kv_dir: Path | None, model: str | None, dtype: str | None, folder: str | None) -> list[Path]:
    from ..model.locate import cache_dir
    from ..sessions.housekeeping import chosen_folders

    root = kv_dir if kv_dir is not None else cache_dir() / "kv"
    if root.exists() and not root.is_dir():
        raise ValueError(f"{root} is a file, not a store folder")
    return chosen_folders(root, model, None if dtype == "auto" else dtype, folder)


def _found(name: str, kv_dir: Path | None, model: str | None, dtype: str | None, folder: str | None) -> Found:
    from ...storage.files.file_names import as_text
    from ..sessions.housekeeping import find_session

    name = as_text(name)  # also where the locale's own encoding could not read it
    chosen = _folders(kv_dir, model, dtype, folder)
    return find_session(chosen, name, _folders(kv_dir, None, None, None))


def _readable(found: Found) -> Saved:
    if found.saved is None:
        from ..sessions.names import unreadable

        assert found.error is not None
        raise unreadable(found.name, found.folder, found.error)
    return found.saved


def _why(error: RecordError | None) -> str:
    from ...storage import LaterVersionError

    return "written by a later version of stratakv" if isinstance(error, LaterVersionError) else "damaged"


def _cells(text: str) -> int:
    """The number of cells that a terminal takes to show a text: two for wide letters of East Asia, none for marks that
    join the letter before."""
    return sum((not unicodedata.combining(letter)) + (unicodedata.east_asian_width(letter) in "WF") for letter in text)


def _date(seconds: float | None) -> str:
    return "never" if seconds is None else datetime.fromtimestamp(seconds).astimezone().strftime("%Y-%m-%d %H:%M")


def _size(num_bytes: int) -> str:
    return f"{num_bytes / 1e6:.1f} MB" if num_bytes < 10**9 else f"{num_bytes / 1e9:.2f} GB"
