"""The code that the interactive chat and the one-shot form share: from options to a conversation that has read its
documents."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..api.config import GenerationConfig, KVConfig
from ..chat.documents import Document, read_document
from ..process.terminal import printable

if TYPE_CHECKING:
    from rich.console import Console

    from ..api.progress import OnProgress
    from ..api.progress import Progress as Step
    from ..chat.chat import Chat
    from ..chat.documents import Read
    from ..chat.runtime import Runtime


@dataclass(slots=True)
class ChatOptions:
    """The options that the command line gave."""

    model: str
    device: str
    dtype: str
    kv: KVConfig
    files: list[Path]
    session: str | None
    system: str | None
    generation: dict[str, Any]
    """Only settings that were given: they win over those that a session kept, which defaults do not."""
    weights: str = "auto"
    piped: str = ""
    """Text from standard input, a document beside the prompt."""
    late: Callable[[], bytes] | None = None
    """Returns that text once the model is loaded, where nothing had come yet."""
    save: str | None = None
    """The name under which the conversation is kept once it has answered; None: it is not."""


def prepare(options: ChatOptions) -> list[Document]:
    """Refuse bad input before a model is loaded, and read the documents: each once, a pipe gives its text only once.

    Raises ValueError, OSError, SessionError.
    """
    if options.system is not None:
        options.system = check_text("the system prompt", options.system)
    if options.session is not None:
        options.session = check_text("a session name", options.session)
    if options.save is not None:
        options.save = check_text("a session name", options.save)
    GenerationConfig.from_kwargs(**options.generation)
    documents = [read_document(path) for path in options.files]
    if options.piped.strip():
        documents.append(Document("stdin", options.piped))
    if options.session is not None and options.system is not None:
        raise ValueError("a resumed session has its system prompt already; give a session or a system prompt, not both")
    return documents


def check_text(what: str, text: str) -> str:
    """Return the text, also where the locale's own encoding could not read it. Raises ValueError if a shell or a
    terminal gave bytes that are no UTF-8 text."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        try:
            return text.encode(sys.getfilesystemencoding(), "surrogateescape").decode()
        except UnicodeError:
            raise ValueError(f"{what} is not UTF-8 text (character {error.start + 1}): {text!r}") from None
    return text


def load(options: ChatOptions, console: Console) -> tuple[Runtime, Chat]:
    """Load the model, and begin or resume the conversation; no document is read yet. What takes long only once is told
    on the console."""
    from ..chat.runtime import Runtime

    runtime = Runtime.load(
        options.model, device=options.device, dtype=options.dtype, weights=options.weights, kv=options.kv,
        on_convert=partial(say_converting, console), on_compile=partial(say_compiling, console),
    )  # fmt: skip
    try:
        return runtime, begin(runtime, options, options.session)
    except BaseException:
        runtime.close()
        raise


def begin(runtime: Runtime, options: ChatOptions, session: str | None) -> Chat:
    """Begin a new conversation, or resume one with the settings it was saved with; settings of the command line win."""
    chat = runtime.chat(options.system if session is None else None, session)
    chat.generation = GenerationConfig.from_kwargs(chat.generation, **options.generation)
    return chat


def say_converting(console: Console, what: str) -> None:
    console.print(f"converting {printable(what)} once; later starts skip this", style="dim")


def say_compiling(console: Console) -> None:
    console.print("compiling for this processor once; later starts skip this", style="dim")


def read(chat: Chat, document: Document, console: Console) -> Read:
    """Read a document into the conversation, with a bar while it does."""
    name = printable(document.name)
    with progress_bar(console, f"reading {name}") as step:
        done = chat.read_text(document.text, document.name, on_progress=step)
    if console.is_terminal:
        console.print(
            f"{name}: {done.tokens} tokens, {done.cached} of them from the store, {done.ms / 1000:.1f} s", style="dim"
        )
    return done


@contextmanager
def progress_bar(console: Console, what: str) -> Iterator[OnProgress]:
    """Show a prefill bar with ETA; nothing when the console is no terminal."""
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}", style="dim", markup=False), BarColumn(), TaskProgressColumn(),
        TextColumn("{task.fields[count]}", style="dim", markup=False), TimeRemainingColumn(),
    )  # fmt: skip
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(what, total=None, count="")

        def step(done: Step) -> None:
            bar.update(task, total=done.total, completed=done.processed, count=f"{done.processed}/{done.total} tokens")

        yield step


def check_session(options: ChatOptions) -> None:
    """Say at once that a session is not there, if that can be known without its model.

    Raises SessionError.
    """
    from ...storage import StorageError
    from ..api.errors import SessionError
    from ..sessions.names import check_name, listed, same_name
    from ..sessions.saved import StoreFolder, store_folders

    for name in (options.session, options.save):
        if name is None:
            continue
        check_name(name)
        if options.kv.disk_gb == 0:
            raise SessionError("sessions need the disk tier; it is switched off (disk_gb=0)")
    if options.session is None:
        return
    names: list[str] = []
    for folder in store_folders(store_root(options.kv)):
        try:
            with StoreFolder(folder) as store:
                names.extend(store.disk.session_names())
        except (StorageError, OSError):  # opening the folder for its model will tell whether it is in there
            return
    if same_name(options.session, names) is None:
        known = listed(options.session, names)
        raise SessionError(f"no session {options.session!r} for this model or any other; {known}")


def store_root(kv: KVConfig) -> Path:
    """The folder that holds a store for each model."""
    from ..model.locate import cache_dir

    return Path(os.path.expanduser(kv.path)) if kv.path is not None else cache_dir() / "kv"


def settle_store(kv: KVConfig, tell: Callable[[str], None]) -> KVConfig:
    """The settings with a store that can be used: in memory alone where nobody chose a folder and the default cannot be
    written. Raises ValueError where one was asked for."""
    if kv.disk_gb == 0:
        return kv
    root = store_root(kv)
    problem = _why_unusable(root)
    if problem is None:
        return kv
    if kv.path is not None or kv.disk_gb is not None:
        raise ValueError(f"store folder {root} cannot be used ({problem}); choose another with --kv-dir")
    tell(
        f"the store folder {root} cannot be used ({problem}): going on without a disk tier, nothing is kept; "
        "--kv-dir names another"
    )
    return replace(kv, disk_gb=0.0)


def _why_unusable(folder: Path) -> str | None:
    if str(folder).startswith("~"):
        return "there is no such home folder"
    nearest = folder
    while not os.path.lexists(nearest) and nearest != nearest.parent:
        nearest = nearest.parent
    if not nearest.is_dir():
        return f"{nearest} is not a folder"
    if not os.access(nearest, os.W_OK | os.X_OK):
        return f"{nearest} cannot be written"
    return None
