"""stratakv: chat with documents far larger than the GPU's memory.

    from stratakv.runtime import Runtime, KVConfig

    rt = Runtime.load("smollm2")
    chat = rt.chat()
    chat.read("book.txt")
    print(chat.send("Who hid the letter?").text)

Names are imported on first use: importing this package loads no model library and starts nothing. Whoever first asks
for `Runtime` or `Chat` loads torch, with as many OpenMP threads as it may have cores (`threads`; while others are busy,
fewer take a decode step: `spare_cores`).
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..storage.errors import (
        CapacityError,
        ClosedError,
        CorruptPageError,
        ForkedError,
        LaterStoreError,
        LaterVersionError,
        NoRoomError,
        RecordError,
        SessionChangedError,
        StorageError,
        StorageFullError,
        StoreUnavailableError,
        StratakvError,
        UnknownPagesError,
    )
    from .api.config import GenerationConfig, KVConfig
    from .api.errors import (
        ConversationError,
        DoesNotFitError,
        LaterProfileError,
        ModelFileError,
        ProfileError,
        SessionError,
        WrongTypeError,
    )
    from .api.reply import Reply
    from .api.stats import Stats
    from .chat.chat import Chat
    from .chat.runtime import Runtime

__all__ = [
    "CapacityError", "Chat", "ClosedError", "ConversationError", "CorruptPageError", "DoesNotFitError", "ForkedError",
    "GenerationConfig", "KVConfig", "LaterProfileError", "LaterStoreError", "LaterVersionError", "ModelFileError",
    "NoRoomError", "ProfileError", "RecordError", "Reply", "Runtime", "SessionChangedError", "SessionError", "Stats",
    "StorageError", "StorageFullError", "StoreUnavailableError", "StratakvError", "UnknownPagesError", "WrongTypeError",
]  # fmt: skip

_NAMES = {
    "api.config": ["GenerationConfig", "KVConfig"],
    "api.errors": [
        "ConversationError", "DoesNotFitError", "LaterProfileError", "ModelFileError", "ProfileError", "SessionError",
        "WrongTypeError",
    ],
    "api.reply": ["Reply"],
    "api.stats": ["Stats"],
    "chat.chat": ["Chat"],
    "chat.runtime": ["Runtime"],
    ".storage.errors": [
        "CapacityError", "ClosedError", "CorruptPageError", "ForkedError", "LaterStoreError", "LaterVersionError",
        "NoRoomError", "RecordError", "SessionChangedError", "StorageError", "StorageFullError",
        "StoreUnavailableError", "StratakvError", "UnknownPagesError",
    ],
}  # fmt: skip
_HOMES = {name: module for module, names in _NAMES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if name in ("Chat", "Runtime"):
        import_module(".process.threads", __name__).import_torch()
    return getattr(import_module(f".{_HOMES[name]}", __name__), name)
