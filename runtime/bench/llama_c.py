"""llama.cpp's own interface in C, as the wheel `xllamacpp` carries it: load a file, read tokens, take logits.

The wheel is made to serve; what lies below is linked into the same library, and its functions can be called. Structures
change from version to version, so one version is asked for (`[compare]` in pyproject.toml), and before anything is set
its defaults must stand where this file expects them.
"""

from __future__ import annotations

import ctypes
import importlib.metadata
import importlib.util
import os
from collections.abc import Iterator
from ctypes import (
    POINTER,
    Structure,
    c_bool,
    c_char_p,
    c_float,
    c_int8,
    c_int32,
    c_int64,
    c_size_t,
    c_uint8,
    c_uint32,
    c_void_p,
)
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

PACKAGE = "xllamacpp"
KV_TYPES = {"f32": 0, "f16": 1, "q8_0": 8}
"""Names of types of numbers in a cache, with ggml's numbers for them."""
_ERROR = 4
_ROOM = 256
"""Bytes behind the fields that are named here, more than there are. A structure passed by value stands last."""


class LlamaCppError(Exception):
    """llama.cpp refused; the message is its own."""


class _ModelSettings(Structure):
    _fields_ = (("devices", c_void_p), ("buffers", c_void_p), ("gpu_layers", c_int32), ("rest", c_uint8 * _ROOM))


class _ContextSettings(Structure):
    _fields_ = (
        ("context", c_uint32), ("batch", c_uint32), ("rows", c_uint32), ("counts", c_uint32 * 4),
        ("threads", c_int32), ("batch_threads", c_int32), ("kinds", c_int32 * 4), ("flash", c_int32),
        ("rope", c_float * 8), ("callback", c_void_p * 2), ("key_type", c_int32), ("value_type", c_int32),
        ("rest", c_uint8 * _ROOM),
    )  # fmt: skip


class _Batch(Structure):
    _fields_ = (
        ("count", c_int32), ("tokens", POINTER(c_int32)), ("embeddings", c_void_p), ("positions", c_void_p),
        ("sequence_counts", c_void_p), ("sequences", c_void_p), ("wanted", POINTER(c_int8)), ("rest", c_uint8 * _ROOM),
    )  # fmt: skip


class _Traits(Structure):
    _fields_ = (
        ("name", c_char_p), ("block", c_int64), ("interleaved", c_int64), ("block_bytes", c_size_t),
        ("is_quantised", c_bool), ("to_float", c_void_p),
    )  # fmt: skip


_DEFAULTS = {
    "context": 512, "batch": 2048, "rows": 512, "threads": 4, "batch_threads": 4, "flash": -1, "key_type": 1,
    "value_type": 1,
}  # fmt: skip
_LOGGED = ctypes.CFUNCTYPE(None, c_int32, c_char_p, c_void_p)
_errors: list[str] = []


def _on_log(level: int, text: bytes, _: object) -> None:
    if level == _ERROR:
        _errors.append(text.decode(errors="replace").strip())


_ON_LOG = _LOGGED(_on_log)
"""Kept as long as llama.cpp may call it."""


def is_installed() -> bool:
    return importlib.util.find_spec(PACKAGE) is not None


def version() -> str:
    """The name of llama.cpp's build, such as `b11549`."""
    return f"b{importlib.metadata.version(PACKAGE).split('.')[2]}"


@cache
def _library() -> Any:
    """Load the library. Raises LlamaCppError if it is another version than this file knows."""
    spec = importlib.util.find_spec(PACKAGE)
    assert spec is not None
    assert spec.submodule_search_locations is not None
    folder = Path(next(iter(spec.submodule_search_locations)))
    found = ctypes.CDLL(str(next(path for path in folder.glob(f"{PACKAGE}*") if path.suffix in (".so", ".pyd"))))
    for name, result, arguments in _functions():
        function = getattr(found, name)
        function.restype, function.argtypes = result, arguments
    found.llama_log_set(_ON_LOG, None)
    found.llama_backend_init()
    defaults = found.llama_context_default_params()
    seen = {name: getattr(defaults, name) for name in _DEFAULTS}
    if seen != _DEFAULTS:
        raise LlamaCppError(f"{PACKAGE} {version()} has other structures than are known here: {seen}")
    return found


def _functions() -> Iterator[tuple[str, Any, list[Any]]]:
    """Yield (name, result, arguments) of each function that is called."""
    yield "llama_log_set", None, [_LOGGED, c_void_p]
    yield "llama_backend_init", None, []
    yield "llama_model_default_params", _ModelSettings, []
    yield "llama_context_default_params", _ContextSettings, []
    yield "llama_model_load_from_file", c_void_p, [c_char_p, _ModelSettings]
    yield "llama_model_free", None, [c_void_p]
    yield "llama_init_from_model", c_void_p, [c_void_p, _ContextSettings]
    yield "llama_free", None, [c_void_p]
    yield "llama_get_memory", c_void_p, [c_void_p]
    yield "llama_memory_clear", None, [c_void_p, c_bool]
    yield "llama_model_get_vocab", c_void_p, [c_void_p]
    yield "llama_vocab_n_tokens", c_int32, [c_void_p]
    yield "llama_vocab_is_eog", c_bool, [c_void_p, c_int32]
    yield "llama_tokenize", c_int32, [c_void_p, c_char_p, c_int32, POINTER(c_int32), c_int32, c_bool, c_bool]
    yield "llama_decode", c_int32, [c_void_p, _Batch]
    yield "llama_get_logits", POINTER(c_float), [c_void_p]
    yield "ggml_get_type_traits", POINTER(_Traits), [c_int32]


class LlamaModel:
    """A file and one sequence of tokens. Raises LlamaCppError if llama.cpp refuses it.

    Args:
        context: tokens that the sequence may have.
        kv: type of the numbers in its cache, of `KV_TYPES`.
        flash: compute attention in one kernel; needed for a cache in 8 bits.
        rows: tokens that are read at a time.
    """

    def __init__(
        self, path: Path, *, context: int, threads: int = 1, kv: str = "f32", flash: bool = False, rows: int = 512
    ) -> None:
        self._c, self._rows, self._room, self._held = _library(), min(rows, context), context, 0
        _errors.clear()
        of_model = self._c.llama_model_default_params()
        of_model.gpu_layers = 0
        self._model = self._c.llama_model_load_from_file(os.fsencode(path), of_model)
        if not self._model:
            raise LlamaCppError("; ".join(_errors) or f"{path} could not be loaded")
        settings = self._c.llama_context_default_params()
        settings.context, settings.batch, settings.rows = context, self._rows, self._rows
        settings.threads = settings.batch_threads = threads
        settings.flash, settings.key_type, settings.value_type = int(flash), KV_TYPES[kv], KV_TYPES[kv]
        self._context = self._c.llama_init_from_model(self._model, settings)
        if not self._context:
            self._c.llama_model_free(self._model)
            raise LlamaCppError("; ".join(_errors) or f"no context of {context} tokens")
        self._vocabulary = self._c.llama_model_get_vocab(self._model)
        self.vocabulary_size: int = self._c.llama_vocab_n_tokens(self._vocabulary)

    def extend(self, tokens: np.ndarray, *, every: bool = False) -> np.ndarray:
        """Append tokens `[n]`. Returns logits fp32 `[n, vocabulary]` of every token, or `[1, vocabulary]` of the
        last."""
        self._held += len(tokens)
        if self._held > self._room:  # it would end the process
            raise LlamaCppError(f"{self._held} tokens, its context has {self._room}")
        found = []
        for start in range(0, len(tokens), self._rows):
            ids = np.ascontiguousarray(tokens[start : start + self._rows], np.int32)
            wanted = np.full(len(ids), every, np.int8)
            wanted[-1] = True
            batch = _Batch(len(ids), ids.ctypes.data_as(POINTER(c_int32)))
            batch.wanted = wanted.ctypes.data_as(POINTER(c_int8))
            _errors.clear()
            if self._c.llama_decode(self._context, batch):
                raise LlamaCppError("; ".join(_errors) or "it could not read the tokens")
            shape = (int(wanted.sum()), self.vocabulary_size)
            found.append(np.ctypeslib.as_array(self._c.llama_get_logits(self._context), shape).copy())
        return np.concatenate(found) if every else found[-1]

    def clear(self) -> None:
        """Forget the sequence."""
        self._c.llama_memory_clear(self._c.llama_get_memory(self._context), True)
        self._held = 0

    def tokenize(self, text: str, *, special: bool = False, begin: bool = False) -> list[int]:
        """Token ids of a text.

        Args:
            special: read the spelling of control tokens as these tokens.
            begin: add what the file says begins and ends a text.
        """
        data = text.encode()
        room = len(data) + 16
        ids = (c_int32 * room)()
        count = self._c.llama_tokenize(self._vocabulary, data, len(data), ids, room, begin, special)
        assert count >= 0, "a token is at least one byte"
        return list(ids[:count])

    def ends(self, token: int) -> bool:
        """True if the token ends a reply."""
        return bool(self._c.llama_vocab_is_eog(self._vocabulary, token))

    def close(self) -> None:
        self._c.llama_free(self._context)
        self._c.llama_model_free(self._model)


def expand(data: np.ndarray, kind: int) -> np.ndarray:
    """Expand a tensor's bytes in a quantisation type of ggml to numbers fp32 `[n]`."""
    traits = _library().ggml_get_type_traits(kind).contents
    raw = np.ascontiguousarray(data, np.uint8).ravel()
    found = np.empty(len(raw) // traits.block_bytes * traits.block, np.float32)
    to_float = ctypes.CFUNCTYPE(None, c_void_p, c_void_p, c_int64)(traits.to_float)
    to_float(raw.ctypes.data, found.ctypes.data, len(found))
    return found
