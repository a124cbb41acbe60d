"""Loading the model behind the chat's prompt, in a thread that whoever leaves early does not wait for."""

from __future__ import annotations

import threading
from concurrent.futures import Future
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..chat.chat import Chat
    from ..chat.runtime import Runtime
    from .chat_setup import ChatOptions

LOADER = "stratakv-load"
"""The thread's name, by which the command finds it when it ends."""


def load_behind(options: ChatOptions) -> Future[tuple[Runtime, Chat]]:
    """Load in a thread. The future gives the model and the conversation, or raises what is wrong with them."""
    from ..process.terminal import make_console
    from .chat_setup import load

    opening: Future[tuple[Runtime, Chat]] = Future()
    stderr = make_console(stderr=True)

    def work() -> None:
        try:
            opening.set_result(load(options, stderr))
        except BaseException as error:  # handed to whoever waits for the model
            opening.set_exception(error)

    threading.Thread(target=work, name=LOADER, daemon=True).start()
    return opening
