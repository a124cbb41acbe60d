"""The logits of one text by transformers, by llama.cpp, and by us in every way that a text can be read."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from stratakv.runtime import KVConfig, Runtime
from stratakv.runtime.bench import llama_c
from stratakv.runtime.engine.engine import Engine
from stratakv.runtime.engine.sequence import Sequence
from stratakv.runtime.sessions import session

OF_TRANSFORMERS, OF_LLAMA_CPP = 1e-3, 3e-3
"""Largest difference of logits over the largest logit, in fp32."""
STEPS = 6
"""Decoded in a row."""
needs_llama_cpp = pytest.mark.skipif(not llama_c.is_installed(), reason="needs xllamacpp: `.[compare]`")

Found = tuple[str, int, np.ndarray]
"""(way of reading, position, logits `[vocabulary]` behind it)"""


def text(count: int) -> np.ndarray:
    """Token ids `[count]`, none of them special."""
    return np.random.default_rng(1).integers(4, 250, count).astype(np.uint32)


def by_transformers(model: Any, ids: np.ndarray, original: int) -> np.ndarray:
    """`[n, vocabulary]`, each of one forward pass over all that was read until there."""

    def read(part: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            logits: np.ndarray = model(torch.from_numpy(part.astype(np.int64))[None]).logits[0].numpy()
        return logits

    return _before_and_beyond(read, ids, original)


def by_llama_cpp(path: Path, ids: np.ndarray, original: int) -> np.ndarray:
    """`[n, vocabulary]`. Its context is as long as the text: by that it chooses among LongRoPE's tables."""

    def read(part: np.ndarray) -> np.ndarray:
        llama = llama_c.LlamaModel(path, context=len(part))
        try:
            return llama.extend(part, every=True)
        finally:
            llama.close()

    return _before_and_beyond(read, ids, original)


def _before_and_beyond(read: Callable[[np.ndarray], np.ndarray], ids: np.ndarray, original: int) -> np.ndarray:
    """All positions of a text that is longer than `original` may be turned otherwise than those of a shorter one."""
    whole = read(ids)
    return np.concatenate([read(ids[:original]), whole[original:]]) if len(ids) > original else whole


def by_us(path: Path, ids: np.ndarray, folder: Path, original: int) -> Iterator[Found]:
    """In one piece, in pieces, step by step over the `original` window, and from a saved session in another runtime."""
    kv = KVConfig(path=folder / "kv", index="dense", host_gb=0.1, disk_gb=0.2)
    head = ids[:-STEPS]
    with Runtime.load(path, dtype="float32", kv=kv) as runtime:
        engine = runtime.engine
        sequence = engine.new_sequence()
        yield "in one piece", len(head) - 1, _read(engine, sequence, head)
        yield from _decode(engine, sequence, ids, "decoded behind one piece")
        sequence.close()
        sequence = engine.new_sequence()
        for piece in np.array_split(head, [1, 40, 41, len(head) // 2]):
            yield "in pieces", len(sequence.tokens) + len(piece) - 1, _read(engine, sequence, piece)
        session.save(engine, sequence, "kept", {})
        yield from _decode(engine, sequence, ids, "decoded behind pieces")
        sequence.close()
        if original < len(ids) - STEPS:
            sequence = engine.new_sequence()
            _read(engine, sequence, ids[: original - STEPS // 2])
            yield from _decode(engine, sequence, ids[: original + STEPS], "decoded over the original window")
            sequence.close()
    with Runtime.load(path, dtype="float32", kv=kv) as runtime:
        sequence, _, _ = session.load(runtime.engine, "kept")
        yield from _decode(runtime.engine, sequence, ids, "resumed")


def greedy_by_llama_cpp(path: Path, ids: np.ndarray, count: int) -> list[int]:
    """The likeliest tokens behind a text, one after the other."""
    llama = llama_c.LlamaModel(path, context=len(ids) + count)
    found = [int(llama.extend(ids).argmax())]
    while len(found) < count:
        found.append(int(llama.extend(np.array(found[-1:])).argmax()))
    llama.close()
    return found


def greedy_by_us(path: Path, ids: np.ndarray, count: int, folder: Path) -> list[int]:
    kv = KVConfig(path=folder / "greedy", index="dense", host_gb=0.1, disk_gb=0.2)
    with Runtime.load(path, dtype="float32", kv=kv) as runtime:
        sequence = runtime.engine.new_sequence()
        found = [int(_read(runtime.engine, sequence, ids).argmax())]
        while len(found) < count:
            found.append(int(runtime.engine.decode([sequence], found[-1:])[0].argmax()))
    return found


def _read(engine: Engine, sequence: Sequence, tokens: np.ndarray) -> np.ndarray:
    logits = engine.prefill(sequence, tokens, reuse=False).logits
    assert logits is not None
    return logits.float().numpy().reshape(-1)


def _decode(engine: Engine, sequence: Sequence, ids: np.ndarray, way: str) -> Iterator[Found]:
    for position in range(len(sequence.tokens), len(ids)):
        yield way, position, engine.decode([sequence], [int(ids[position])])[0].float().numpy()


def assert_close(expected: np.ndarray, found: Iterator[Found] | list[Found], tolerance: float) -> None:
    """All ways of reading, in one message if any of them is off."""
    scale = float(abs(expected).max())
    worst: dict[str, float] = {}
    for way, position, logits in found:
        off = float(abs(logits - expected[position]).max()) / scale
        worst[way] = max(worst.get(way, 0.0), off if off == off else float("inf"))
    off_by = ", ".join(f"{way}: {off:.1e}" for way, off in worst.items() if off > tolerance)
    assert not off_by, f"off by more than {tolerance:.0e} of the largest logit: {off_by}"
