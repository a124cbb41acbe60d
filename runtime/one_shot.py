"""`stratakv chat -p`: one question, its answer on stdout, and the conversation kept if that was asked for."""

from __future__ import annotations

import json
from contextlib import closing
from typing import TYPE_CHECKING, Any

from .chat_setup import Options, check_session, check_text, load, prepare, progress_bar, read, say_converting
from .cli_errors import say, with_flags
from .documents import Document, text_of
from .reply import REPEATS
from .terminal import make_console, shown

if TYPE_CHECKING:
    from .chat import Chat
    from .runtime import Runtime


def one_shot(options: Options, prompt: str, as_json: bool) -> None:
    """Answer once on stdout. Progress goes to stderr, and only to a terminal."""
    console = make_console(stderr=True)
    prompt = check_text("the prompt", prompt)
    if not prompt.strip():
        raise ValueError("the prompt is empty")
    documents = prepare(options)
    check_session(options)
    runtime, chat = load(options, lambda name: say_converting(name, console))
    with runtime:
        if options.late is not None and (text := text_of(options.late(), "stdin")).strip():
            documents.append(Document("stdin", text))
        for document in documents:
            read(chat, document, console)
        _answer(chat, prompt, as_json, console)
        if as_json:  # before anything that may fail: the answer is there
            print(json.dumps(_as_json(runtime, chat)), flush=True)
        if options.save is not None:
            chat.save(options.save)


def _answer(chat: Chat, prompt: str, as_json: bool, console: Any) -> None:
    with progress_bar(console, "reading the message") as step:
        pieces = chat.stream(prompt, on_progress=step)
        piece = next(pieces, None)
    with closing(pieces):
        while piece is not None:
            if not as_json:
                print(shown(piece), end="", flush=True)
            piece = next(pieces, None)
    if not as_json:
        print(flush=True)
        if chat.last.finish_reason == "repeats":
            say(with_flags(f"{REPEATS}; max_repeats=0 lets it go on"))


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
