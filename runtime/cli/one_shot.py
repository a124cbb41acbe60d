"""`stratakv chat -p`: one question, its answer on stdout, and the conversation kept if that was asked for."""

from __future__ import annotations

from contextlib import closing
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ..api.figures import Stopwatch, to_json
from ..api.reply import REPEATS
from ..chat.documents import Document, text_of
from ..process.terminal import make_console, shown
from .chat_setup import ChatOptions, check_session, check_text, load, prepare, progress_bar, read
from .one_line import say, with_flags

if TYPE_CHECKING:
    from ..chat.chat import Chat
    from ..chat.documents import Read
    from ..chat.runtime import Runtime


def one_shot(options: ChatOptions, prompt: str, as_json: bool) -> None:
    """Answer once on stdout. Progress goes to stderr, and only to a terminal."""
    console = make_console(stderr=True)
    prompt = check_text("the prompt", prompt)
    if not prompt.strip():
        raise ValueError("the prompt is empty")
    documents = prepare(options)
    check_session(options)
    with Stopwatch() as loading:
        runtime, chat = load(options, console)
    with runtime:
        if options.late is not None and (text := text_of(options.late(), "stdin")).strip():
            documents.append(Document("stdin", text))
        done = [read(chat, document, console) for document in documents]
        _answer(chat, prompt, as_json, console)
        if as_json:  # shown before anything may fail: the answer is there
            print(to_json(_result(runtime, chat, done, loading.seconds)), flush=True)
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


def _result(runtime: Runtime, chat: Chat, documents: list[Read], load_s: float) -> dict[str, Any]:
    """Make the result. The prompt of a command is its documents and its question: whoever asked waited for both."""
    reply, stats = chat.last, runtime.stats()
    usage, timings = reply.usage, reply.timings
    tokens, cached, ms = (sum(getattr(done, name) for done in documents) for name in ("tokens", "cached", "ms"))
    timings = replace(timings, prompt_n=timings.prompt_n + tokens - cached, prompt_ms=timings.prompt_ms + ms)
    timings.cache_n = usage.prompt_tokens - timings.prompt_n
    if timings.ttft_ms is not None:
        timings.ttft_ms += ms
    return {
        "text": reply.text,
        "finish_reason": reply.finish_reason,
        "documents": {"tokens": tokens, "cached": cached, "ms": ms},
        "usage": {name: getattr(usage, name) for name in ("prompt_tokens", "cached_tokens", "completion_tokens")},
        "timings": timings.as_dict(),
        "load_ms": 1000 * load_s,
        "tiers": stats["tiers"],
        "stats": {name: value for name, value in stats.items() if name != "tiers"},
    }
