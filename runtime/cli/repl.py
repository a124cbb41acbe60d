"""The interactive chat behind `stratakv chat`: read a line, do it, repeat. Only a line that leaves ends it."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import closing, suppress
from typing import TYPE_CHECKING

from prompt_toolkit import PromptSession
from prompt_toolkit.application import get_app
from prompt_toolkit.history import InMemoryHistory
from rich.text import Text

from ..api.config import GenerationConfig
from ..chat.documents import Document, read_document
from ..process.standard_input import is_terminal
from ..process.terminal import make_console, printable, shown
from ..sessions.names import check_name, same_name
from . import repl_report
from .chat_setup import ChatOptions, begin, check_session, check_text, prepare, progress_bar, read
from .loading import load_behind
from .one_line import CAPS, fault, is_debugging, is_out_of_memory, user_errors, with_flags, words
from .one_shot import one_shot
from .typed_line import command_of, message_of, whole_message
from .typed_path import path_of, unquoted
from .typed_settings import changed, in_words, split_setting

if TYPE_CHECKING:
    from rich.console import Console

    from ..chat.chat import Chat
    from ..chat.reply_stream import ReplyStream
    from ..chat.runtime import Runtime

__all__ = ["ChatOptions", "Repl", "one_shot", "run"]

HELP = """\
/read FILE     a document joins the conversation; quoted, escaped and dragged paths are understood
/stats         tokens, bytes per tier, reads, hit rate
/save NAME     keep the conversation with its KV; it resumes without prefill. /save alone: under the same name again
/load NAME     resume a saved conversation, with its settings
/sessions      saved conversations
/set NAME VAL  a setting: /set temperature 0.9 samples, /set temperature 0 is greedy, /set stop_strings END ends a reply
               there (\\n is a new line, none: no longer); /set alone lists them
/show          model, tiers and their caps
/regen         take the last reply back and write another
/clear         forget the conversation
/bye           leave, like Ctrl-D; again, if the conversation is not saved
\"\"\"            starts and ends a message of several lines; Ctrl-C or Ctrl-D in it drops it
//             begins a message with a slash
Ctrl-C         stops a reply"""


class _Failed(Exception):
    """The model cannot be loaded: this ends the prompt that is being typed at."""


def run(options: ChatOptions) -> None:
    """Read, answer, repeat. The prompt appears at once; the model loads behind it.

    Raises what loading raised, if it failed.
    """
    documents = prepare(options)
    check_session(options)
    console = make_console()
    console.print(Text("stratakv", "bold"), "·", printable(options.model), "· /help for commands")
    for document in documents:
        console.print(f"{printable(document.name)} will be part of the conversation", style="dim")
    Repl(options, console, load_behind(options), documents).loop()


class Repl:
    """The loop and its commands.

    Args:
        opening: resolves to the loaded runtime and the conversation.
        documents: they are read before the first message.
    """

    def __init__(
        self, options: ChatOptions, console: Console, opening: Future[tuple[Runtime, Chat]],
        documents: list[Document] | None = None,
    ) -> None:  # fmt: skip
        self.options, self.console, self._opening = options, console, opening
        self._documents = list(documents or [])
        self._chat: Chat | None = None
        self._prompt: PromptSession[str] = PromptSession(history=InMemoryHistory())
        self._name = options.session
        """The name that the conversation is saved under; None: it is not saved."""
        self._kept: list[dict[str, str]] = []
        """The messages when the conversation was saved or began."""
        self._is_warned = False
        self.asks = is_terminal()
        """True if somebody is there to answer before something is lost."""
        self._commands: dict[str, Callable[[str], None]] = {
            "help": lambda _: self.console.print(HELP),
            "?": lambda _: self.console.print(HELP),
            "read": self._read,
            "stats": lambda _: repl_report.stats(self.console, self.runtime, self.chat),
            "save": self._save,
            "load": self._load,
            "sessions": lambda _: self._sessions(),
            "set": self._set,
            "show": lambda _: repl_report.show(self.console, self.runtime),
            "regen": lambda _: self._regenerate(),
            "clear": lambda _: self._clear(),
        }
        opening.add_done_callback(self._stop_typing)

    @property
    def runtime(self) -> Runtime:
        """The runtime; waits for the model, showing that it does."""
        return self._opened()[0]

    @property
    def chat(self) -> Chat:
        """The conversation; the documents of the command line are read the first time."""
        if self._chat is None:
            self._chat = self._opened()[1]
            self._kept = _said(self._chat)
            self.console.print(repl_report.loaded(self.runtime), style="dim")
            if self._chat.restored:
                self._say_restored(self._chat)
        while self._documents:
            try:
                read(self._chat, self._documents[0], self.console)
            except Exception:
                self._documents.pop(0)
                raise
            self._documents.pop(0)  # after Ctrl-C it stays, and is read before the next message
        return self._chat

    def _opened(self) -> tuple[Runtime, Chat]:
        if not self._opening.done():
            with self.console.status(Text(f"loading {printable(self.options.model)}")):
                return self._opening.result()
        return self._opening.result()

    # The loop

    def loop(self) -> None:
        """Read and handle lines until somebody leaves. Raises what loading raised, if it failed."""
        try:
            while not self._has_failed():
                try:
                    if self._handle(self._line()):
                        break
                except KeyboardInterrupt:
                    self.console.print("(/bye or Ctrl-D leaves)", style="dim")
        finally:
            self._opening.add_done_callback(_close)
        if self._has_failed():
            self._opening.result()

    def _line(self) -> str:
        """The typed line without blanks around it. Whoever ends the input wants to leave."""
        try:
            first = self._typed(">>> ")
        except (EOFError, _Failed):
            return "/bye"
        try:
            return whole_message(first, lambda: self._typed("... "))
        except (EOFError, KeyboardInterrupt):
            self.console.print("the message was dropped", style="dim")
            return ""

    def _typed(self, prompt: str) -> str:
        return self._prompt.prompt(prompt, pre_run=self._leave_if_failed)

    @property
    def _is_unsaved(self) -> bool:
        return self._chat is not None and _said(self._chat) != self._kept

    def _has_failed(self) -> bool:
        return self._opening.done() and self._opening.exception() is not None

    def _leave_if_failed(self) -> None:
        """End the prompt if loading has failed. Called at a prompt as it begins, and when loading has failed."""
        app = self._prompt.app if not get_app().is_running else get_app()
        if self._has_failed() and app.future is not None and not app.future.done():
            app.exit(exception=_Failed())

    def _stop_typing(self, opening: Future[tuple[Runtime, Chat]]) -> None:
        """Interrupt the prompt if loading has failed: whoever types need not finish in vain. Called when loading has
        ended, mostly in its thread."""
        loop = self._prompt.app.loop
        if opening.exception() is not None and loop is not None:
            with suppress(RuntimeError):  # the prompt has ended by itself meanwhile
                loop.call_soon_threadsafe(self._leave_if_failed)

    def _handle(self, line: str) -> bool:
        """Handle one message or command; returns True if it leaves. An error is told, and the loop goes on."""
        if not line.strip():
            return False
        is_warned, self._is_warned = self._is_warned, False
        said: tuple[type[BaseException], ...] = (*user_errors(), RecursionError)
        try:
            return self._do(line, is_warned)
        except KeyboardInterrupt:
            self.console.print("stopped", style="dim")
        except BrokenPipeError:  # nobody sees what is said
            raise
        except said as error:
            self._complain(with_flags(words(error), CAPS))
        except Exception as error:  # a fault of ours: the conversation must outlive it
            is_ours = not is_out_of_memory(error)
            self._complain(fault(error) if is_ours else with_flags(words(error), CAPS))
            if is_debugging():
                traceback.print_exception(error)
        return self._has_failed()

    def _do(self, line: str, is_warned: bool) -> bool:
        found = command_of(line, [*self._commands, "bye", "exit", "quit"])
        if found is None:
            self._ask(check_text("what was typed", message_of(line)))
            return False
        name, argument = found
        if name in ("bye", "exit", "quit"):
            return self._may_leave(is_warned)
        if argument and name not in ("read", "save", "load", "set", "help", "?"):
            raise ValueError(f"/{name} takes nothing after it, not {argument!r}")
        if name != "read":
            argument = check_text("what was typed", argument)
        self._commands[name](argument)
        return False

    def _complain(self, message: str) -> None:
        self.console.print(printable(message), style="red")

    def _may_leave(self, is_warned: bool) -> bool:
        if not (self.asks and self._is_unsaved) or is_warned:
            return True
        self._is_warned = True
        self.console.print("the conversation is not saved: /save NAME keeps it, /bye or Ctrl-D again leaves")
        return False

    def _is_sure(self, question: str) -> bool:
        """Ask a question where somebody is there to answer; anything but yes is no."""
        if not self.asks:
            return True
        try:
            answer = self._typed(f"{printable(question)} [y/N] ")
        except (EOFError, KeyboardInterrupt):
            return False
        return answer.strip().lower() in ("y", "yes")

    def _may_forget(self) -> bool:
        return not self._is_unsaved or self._is_sure("the conversation is not saved; forget it?")

    # Talking

    def _ask(self, text: str) -> None:
        chat = self.chat
        with progress_bar(self.console, "reading the message") as step:
            pieces = chat.stream(text, on_progress=step)
            first = next(pieces, None)
        self._answer(first, pieces)

    def _regenerate(self) -> None:
        pieces = self.chat.regenerate()
        self._answer(next(pieces, None), pieces)

    def _answer(self, piece: str | None, pieces: ReplyStream) -> None:
        with closing(pieces):
            try:
                while piece is not None:
                    print(shown(piece), end="", flush=True)
                    piece = next(pieces, None)
            finally:
                print()
        self.console.print(repl_report.status(self.runtime, self.chat), style="dim")

    # Commands

    def _read(self, argument: str) -> None:
        if not argument:
            raise ValueError("/read needs a file name")
        read(self.chat, read_document(path_of(argument)), self.console)

    def _save(self, argument: str) -> None:
        chat = self.chat
        name = self._session_name(argument) or self._name
        if name is None:
            raise ValueError("/save needs a name")
        other = chat.would_replace(name)
        if other is not None and not self._is_sure(f"there is a session {name!r} already, {other}; replace it?"):
            self.console.print("not saved", style="dim")
            return
        seconds = repl_report.timed(lambda: chat.save(name, replace=other is not None))
        self._name, self._kept = name, _said(chat)
        self.console.print(f"saved {printable(name)!r} with the KV of {chat.num_tokens} tokens in {seconds:.1f} s")

    def _load(self, argument: str) -> None:
        name = self._session_name(argument)
        if not name:
            raise ValueError("/load needs a name; /sessions lists them")
        is_there = same_name(check_name(name), self.runtime.sessions()) is not None
        if is_there and not self._may_forget():  # a session that is not there needs no answer
            return
        chat = begin(self.runtime, self.options, name)
        self._replace(chat, name)
        self._say_restored(chat)

    def _session_name(self, argument: str) -> str:
        """The session's name as typed if there is such a session, else without quotes."""
        bare = unquoted(argument)
        return argument if bare != argument and argument in self.runtime.sessions() else bare

    def _sessions(self) -> None:
        self.console.print("\n".join(map(printable, self.runtime.sessions())) or "no sessions")
        for line in repl_report.sessions_elsewhere(self.runtime):
            self.console.print(line, style="dim")

    def _say_restored(self, chat: Chat) -> None:
        computed = chat.num_tokens - chat.restored
        self.console.print(f"{chat.restored} tokens restored, {computed} computed again")

    def _set(self, argument: str) -> None:
        chat = self.chat
        if argument:
            name, value = split_setting(argument)
            if value is None and name == "stop_strings":
                value = "none"
            if value is not None:
                chat.generation = changed(chat.generation, name, value)
            self.console.print(printable(in_words(chat.generation, name)))
        self.console.print(printable(repl_report.settings(chat.generation)), style="dim")

    def _clear(self) -> None:
        if not self._may_forget():
            return
        chat = self.runtime.chat(self.options.system)
        chat.generation = self._generation()
        self._documents.clear()
        self._replace(chat, None)
        self.console.print("the conversation is forgotten", style="dim")

    def _generation(self) -> GenerationConfig:
        return self.chat.generation if self._chat is not None else self._opened()[1].generation

    def _replace(self, chat: Chat, name: str | None) -> None:
        """Go on with another conversation."""
        old = self._chat if self._chat is not None else self._opened()[1]
        old.close()
        self._chat, self._name, self._kept = chat, name, _said(chat)


def _said(chat: Chat) -> list[dict[str, str]]:
    """The messages that count as said: documents are read again at no cost, other messages are nowhere else."""
    return [message for message in chat.messages if message["role"] != "document"]


def _close(opening: Future[tuple[Runtime, Chat]]) -> None:
    if opening.exception() is None:
        opening.result()[0].close()
