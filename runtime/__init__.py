"""stratakv: chat with documents far larger than the GPU's memory.

    from stratakv.runtime import Runtime, KVConfig

    rt = Runtime.load("smollm2")
    chat = rt.chat()
    chat.read("book.txt")
    print(chat.send("Who hid the letter?").text)

Names are imported on first use: importing this package loads no model library and starts nothing. Whoever first asks
for `Runtime` or `Chat` loads torch, with as many OpenMP threads as it may have cores (`threads`; while others are busy,
fewer compute: `spare_cores`).
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..storage.errors import CapacityError, ClosedError, ForkedError, StorageError, StoreUnavailableError
    from .api.config import GenerationConfig, KVConfig
    from .api.errors import (
        ConversationError,
        DoesNotFitError,
        ModelFileError,
        ProfileError,
        SessionError,
        StratakvError,
        WrongTypeError,
    )
    from .api.reply import Reply
    from .chat.chat import Chat
    from .chat.runtime import Runtime

__all__ = [
    "CapacityError", "Chat", "ClosedError", "ConversationError", "DoesNotFitError", "ForkedError", "GenerationConfig",
    "KVConfig", "ModelFileError", "ProfileError", "Reply", "Runtime", "SessionError", "StorageError",
    "StoreUnavailableError", "StratakvError", "WrongTypeError",
]  # fmt: skip

_HOMES = {
    "CapacityError": ".storage.errors",
    "ClosedError": ".storage.errors",
    "ForkedError": ".storage.errors",
    "StorageError": ".storage.errors",
    "StoreUnavailableError": ".storage.errors",
    "Chat": "chat.chat",
    "ConversationError": "api.errors",
    "DoesNotFitError": "api.errors",
    "GenerationConfig": "api.config",
    "KVConfig": "api.config",
    "ModelFileError": "api.errors",
    "ProfileError": "api.errors",
    "Reply": "api.reply",
    "Runtime": "chat.runtime",
    "SessionError": "api.errors",
    "StratakvError": "api.errors",
    "WrongTypeError": "api.errors",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if name in ("Chat", "Runtime"):
        import_module(".process.threads", __name__).import_torch()
    return getattr(import_module(f".{_HOMES[name]}", __name__), name)
