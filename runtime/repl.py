"""The interactive chat behind `stratakv chat`, and its one-shot form."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prompt_toolkit import PromptSession
from prompt_toolkit.history import InMemoryHistory
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.table import Table

from .config import GenerationConfig, KVConfig
from .documents import read_text_file

if TYPE_CHECKING:
    from .chat import Chat
    from .engine import OnProgress
    from .engine import Progress as Step
    from .runtime import Runtime

HELP = """\
/read FILE     a document joins the conversation
/stats         tokens, bytes per tier, reads, hit rate
/save NAME     keep the conversation with its KV; it resumes without prefill
/load NAME     resume a saved conversation
/sessions      saved conversations
/set NAME VAL  generation setting (max_new_tokens, temperature, seed, ...); /set alone lists them
/show          model, tiers and their caps
/regen         take the last reply back and write another
/clear         forget the conversation
/bye           leave
\"\"\"            starts and ends a message of several lines; Ctrl-C stops a reply"""


@dataclass(slots=True)
class Options:
    """What the command line asked for."""

    model: str
    device: str
    dtype: str
    kv: KVConfig
    files: list[Path]
    session: str | None
    system: str | None
    generation: dict[str, Any]
    weights: str = "own"


# One shot


def one_shot(options: Options, prompt: str, as_json: bool) -> None:
    """Answer once on stdout. Progress goes to stderr, and only to a terminal."""
    console = Console(stderr=True)
    _check(options, prompt)
    runtime, chat = _open(options, console)
    with runtime:
        with progress_bar(console, "reading the message") as step:
            pieces = chat.stream(prompt, on_progress=step)
            first = next(pieces, "")
        for piece in _chain(first, pieces):
            if not as_json:
                print(piece, end="", flush=True)
        if as_json:
            print(json.dumps(_as_json(runtime, chat)))
        else:
            print()


def _chain(first: str, rest: Iterator[str]) -> Iterator[str]:
    yield first
    yield from rest


def _as_json(runtime: Runtime, chat: Chat) -> dict[str, Any]:
    reply, stats = chat.last, runtime.stats()
    usage = reply.usage
    return {
        "text": reply.text,
        "finish_reason": reply.finish_reason,
        "usage": {name: getattr(usage, name) for name in ("prompt_tokens", "cached_tokens", "completion_tokens")},
        "timings": reply.timings.as_dict(),
        "tiers": stats.pop("tiers"),
        "stats": stats,
    }


def _check(options: Options, prompt: str | None) -> None:
    """Refuse bad input before a model is loaded. Raises ValueError, OSError."""
    if prompt is not None and not prompt.strip():
        raise ValueError("the prompt is empty")
    GenerationConfig.from_kwargs(**options.generation)
    for path in options.files:
        if not read_text_file(path).strip():
            raise ValueError(f"{path} is empty")


def _open(options: Options, console: Console) -> tuple[Runtime, Chat]:
    """Load the model, resume or begin the conversation, read the documents."""
    from .runtime import Runtime

    runtime = Runtime.load(
        options.model,
        device=options.device,
        dtype=options.dtype,
        weights=options.weights,
        kv=options.kv,
        on_convert=lambda name: _say_converting(name, console),
    )
    try:
        chat = runtime.chat(options.system, options.session)
        chat.generation = GenerationConfig.from_kwargs(**options.generation)
        for path in options.files:
            _read(chat, path, console)
    except BaseException:
        runtime.close()
        raise
    return runtime, chat


def _say_converting(name: str, console: Console) -> None:
    if console.is_terminal:
        console.print(f"[dim]converting {name} once; later starts skip this[/dim]")


def _read(chat: Chat, path: Path, console: Console) -> None:
    with progress_bar(console, f"reading {path.name}") as step:
        done = chat.read(path, on_progress=step)
    if console.is_terminal:
        console.print(
            f"[dim]{path.name}: {done.tokens} tokens, {done.cached} of them from the store, "
            f"{done.ms / 1000:.1f} s[/dim]"
        )


@contextmanager
def progress_bar(console: Console, what: str) -> Iterator[OnProgress]:
    """A prefill bar with ETA; nothing when the console is no terminal."""
    columns = (
        TextColumn("[dim]{task.description}"), BarColumn(), TaskProgressColumn(),
        TextColumn("[dim]{task.fields[count]}"), TimeRemainingColumn(),
    )  # fmt: skip
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(what, total=None, count="")

        def step(done: Step) -> None:
            bar.update(task, total=done.total, completed=done.processed, count=f"{done.processed}/{done.total} tokens")

        yield step


# Interactive


def run(options: Options) -> None:
    """Read, answer, repeat. The prompt appears at once; the model loads behind it."""
    _check(options, None)
    console = Console(highlight=False)
    console.print(f"[bold]stratakv[/bold] · {options.model} · /help for commands")
    for path in options.files:
        console.print(f"[dim]{path} will be part of the conversation[/dim]")
    with ThreadPoolExecutor(1, "stratakv-load") as loader:
        opening = loader.submit(_load_only, options)
        Repl(options, console, opening).loop()


def _load_only(options: Options) -> Runtime:
    from .runtime import Runtime

    return Runtime.load(
        options.model,
        device=options.device,
        dtype=options.dtype,
        weights=options.weights,
        kv=options.kv,
        on_convert=lambda name: _say_converting(name, Console(stderr=True)),
    )


class Repl:
    """The loop and its commands. `opening` resolves to the loaded runtime."""

    def __init__(self, options: Options, console: Console, opening: Future[Runtime]) -> None:
        self.options, self.console, self._opening = options, console, opening
        self._chat: Chat | None = None
        self._commands: dict[str, Callable[[str], None]] = {
            "help": lambda _: self.console.print(HELP, markup=False),
            "?": lambda _: self.console.print(HELP, markup=False),
            "read": self._read,
            "stats": lambda _: self._stats(),
            "save": self._save,
            "load": self._load,
            "sessions": lambda _: self.console.print("\n".join(self.runtime.sessions()) or "no sessions", markup=False),
            "set": self._set,
            "show": lambda _: self._show(),
            "regen": lambda _: self._answer(self.chat.regenerate()),
            "clear": lambda _: self._clear(),
        }

    @property
    def runtime(self) -> Runtime:
        """Waits for the model, showing that it does."""
        if not self._opening.done():
            with self.console.status(f"loading {self.options.model}"):
                return self._opening.result()
        return self._opening.result()

    @property
    def chat(self) -> Chat:
        """The conversation; the documents of the command line are read the first time."""
        if self._chat is None:
            runtime = self.runtime
            self._chat = runtime.chat(self.options.system, self.options.session)
            self._chat.generation = GenerationConfig.from_kwargs(**self.options.generation)
            if self._chat.restored:
                self._say_restored(self._chat)
            for path in self.options.files:
                _read(self._chat, path, self.console)
        return self._chat

    def loop(self) -> None:
        prompt: PromptSession[str] = PromptSession(history=InMemoryHistory())
        try:
            while True:
                try:
                    text = self._message(prompt)
                except KeyboardInterrupt:
                    self.console.print("[dim](/bye or Ctrl-D leaves)[/dim]")
                    continue
                except EOFError:
                    break
                if text in ("/bye", "/exit"):
                    break
                if text:
                    self._handle(text)
        finally:
            if self._opening.done() and not self._opening.exception():
                self._opening.result().close()

    def _message(self, prompt: PromptSession[str]) -> str:
        text = prompt.prompt(">>> ").strip()
        if not text.startswith('"""'):
            return text
        lines = [text[3:]]
        while not lines[-1].rstrip().endswith('"""'):
            lines.append(prompt.prompt("... "))
        lines[-1] = lines[-1].rstrip()[:-3]
        return "\n".join(lines).strip()

    def _handle(self, text: str) -> None:
        """One message or command. What the user can act on is said; the loop goes on."""
        from .cli_errors import user_errors

        try:
            if text.startswith("/"):
                name, _, argument = text[1:].partition(" ")
                if name not in self._commands:
                    raise ValueError(f"no command /{name}; /help lists them")
                self._commands[name](argument.strip())
            else:
                self._ask(text)
        except KeyboardInterrupt:
            self.console.print("[dim]stopped[/dim]")
        except user_errors() as error:
            self.console.print(f"[red]{' '.join(str(error).split())}[/red]", markup=True)
            if self._opening.done() and self._opening.exception():
                raise

    def _ask(self, text: str) -> None:
        chat = self.chat
        with progress_bar(self.console, "reading the message") as step:
            pieces = chat.stream(text, on_progress=step)
            first = next(pieces, "")
        self._answer(_chain(first, pieces))

    def _answer(self, pieces: Iterator[str]) -> None:
        try:
            for piece in pieces:
                print(piece, end="", flush=True)
        finally:
            print()
        self.console.print(f"[dim]{self._status()}[/dim]")

    def _status(self) -> str:
        """One line: tokens in context, bytes per tier, speed, hit rate."""
        stats, last = self.runtime.stats(), self.chat.last
        tiers = " ".join(f"{name} {tier['used_bytes'] / 1e6:.0f} MB" for name, tier in stats["tiers"].items())
        return (
            f"{self.chat.num_tokens} tokens in context · {tiers} · "
            f"{last.timings.predicted_per_second:.1f} tok/s · hit rate {stats['hit_rate']:.0%}"
        )

    # Commands

    def _read(self, argument: str) -> None:
        if not argument:
            raise ValueError("/read needs a file name")
        _read(self.chat, Path(argument).expanduser(), self.console)

    def _stats(self) -> None:
        stats = self.runtime.stats()
        table = Table("tier", "cap", "used", "pages", "page reads", box=None, header_style="dim")
        for name, tier in stats.pop("tiers").items():
            sizes = [f"{tier[key] / 1e6:.1f} MB" for key in ("cap_bytes", "used_bytes")]
            table.add_row(name, *sizes, str(tier["pages"]), str(tier["page_reads"]))
        self.console.print(table)
        moved = ", ".join(
            f"{edge.removesuffix('_bytes').replace('_', ' ')} {n / 1e6:.1f} MB" for edge, n in stats["edges"].items()
        )
        self.console.print(f"moved: {moved}", markup=False)
        if stats["codec"] == "adaptive":
            self.console.print(f"{stats['int4_share']:.0%} of new pages are written to disk as int4")
        self.console.print(
            f"hit rate {stats['hit_rate']:.1%}, stalled {stats['stall_s']:.2f} s, "
            f"{stats['tokens_read']} tokens read per head at the last step"
        )
        self.console.print(self._status())

    def _save(self, argument: str) -> None:
        started = time.perf_counter()
        self.chat.save(argument)
        self.console.print(
            f"saved {argument!r} with the KV of {self.chat.num_tokens} tokens in {time.perf_counter() - started:.1f} s",
            markup=False,
        )

    def _load(self, argument: str) -> None:
        chat = self.runtime.chat(session=argument)
        chat.generation = (
            self.chat.generation if self._chat else GenerationConfig.from_kwargs(**self.options.generation)
        )
        if self._chat is not None:
            self._chat.close()
        self._chat = chat
        self._say_restored(chat)

    def _say_restored(self, chat: Chat) -> None:
        computed = chat.num_tokens - chat.restored
        self.console.print(f"{chat.restored} tokens restored, {computed} computed again")

    def _set(self, argument: str) -> None:
        chat = self.chat
        name, _, value = argument.partition(" ")
        if name:
            try:
                parsed = json.loads(value)
            except ValueError:
                parsed = value
            chat.generation = GenerationConfig.from_kwargs(chat.generation, **{name: parsed})
        self.console.print(str(chat.generation), markup=False)

    def _show(self) -> None:
        runtime = self.runtime
        self.console.print(
            f"{runtime.name} on {runtime.model.device}, cache in {runtime.store.layout.dtype}; "
            f"index {runtime.engine.index_name}, budget {runtime.config.budget}",
            markup=False,
        )
        self.console.print(
            f"{runtime.plan.token_bytes} bytes of KV per token; trained for {runtime.model.max_positions} positions"
        )
        for tier, cap, tokens in runtime.plan.rows():
            self.console.print(f"  {tier:5} cap {cap:>8}  holds {tokens} tokens")
        if runtime.store.disk is not None:
            self.console.print(f"  store {runtime.store.disk.folder}", markup=False)

    def _clear(self) -> None:
        if self._chat is not None:
            self._chat.close()
        self._chat = self.runtime.chat(self.options.system)
        self._chat.generation = GenerationConfig.from_kwargs(**self.options.generation)
        self.console.print("[dim]the conversation is forgotten[/dim]")
