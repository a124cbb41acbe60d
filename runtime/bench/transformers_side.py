"""transformers with its own attention and caches: dense, offloaded to the host, quantised."""

from __future__ import annotations

import importlib.util
from typing import Any

import numpy as np
import torch

from .bandwidths import Bandwidths
from .contestant import Contestant, LeftOutError, TimedTurn
from .random_kv import fill_cache
from .roofline import Traffic
from .subject import Reference, Subject

_BACKENDS = (("quanto", "optimum.quanto"), ("hqq", "hqq"))
"""transformers' name of a quantiser, and the package that holds it."""


class Transformers(Contestant):
    """transformers with SDPA, which reads everything at every step."""

    kind = "dense"

    def __init__(self, subject: Subject, reference: Reference, batch: int, bandwidths: Bandwidths) -> None:
        super().__init__(batch, {"baseline": self.kind, "dtype": reference.dtype_name})
        self.name = f"transformers {self.kind} {reference.dtype_name}"
        self._reference, self._subject, self._bandwidths = reference, subject, bandwidths
        self._cache = self.new_cache(reference)
        self._held = 0
        self._read: list[int] = []

    def new_cache(self, reference: Reference) -> Any:
        """Make a cache. Raises LeftOutError where there can be none."""
        return reference.new_cache()

    def extend(self, prompts: np.ndarray) -> None:
        self._next(prompts)

    def fill(self, prompts: np.ndarray) -> None:
        of, (batch, count) = self._reference, prompts.shape
        fill_cache(self._cache, of.hf.config, batch, count, of.dtype, of.device)
        self._held += count

    def decode(self, tokens: list[int]) -> None:
        self._next(np.array(tokens)[:, None])

    def _next(self, tokens: np.ndarray) -> None:
        self._reference.extend(self._cache, tokens).argmax(-1).tolist()
        self._held += tokens.shape[1]

    def on_step(self, began: float) -> None:
        self._read.append(self._held)

    def facts(self, turn: TimedTurn) -> dict[str, Any]:
        dtype = self._reference.dtype
        read = np.mean([_kv_bytes(self._subject, dtype, held) for held in self._read[-len(turn.step_s) :]])
        traffic = self.traffic(self.batch * float(read))
        return {"roofline": traffic.against(self._bandwidths, turn.decode_s / len(turn.step_s))}

    def traffic(self, kv_bytes: float) -> Traffic:
        """The traffic of a step that reads so many bytes of KV."""
        return Traffic(weights=self._subject.read_per_step(self._reference.dtype.itemsize), kv=kv_bytes)

    def close(self) -> None:
        self._cache = None


class Offloaded(Transformers):
    """transformers with its cache in host memory: layers come over one by one, one ahead."""

    kind = "offloaded"

    def new_cache(self, reference: Reference) -> Any:
        from transformers import DynamicCache

        if reference.device.type != "cuda":
            raise LeftOutError("transformers offloads to the host from a CUDA device only")
        return DynamicCache(config=reference.hf.config, offloading=True)

    def traffic(self, kv_bytes: float) -> Traffic:
        return Traffic(weights=self._subject.read_per_step(self._reference.dtype.itemsize), kv=kv_bytes, link=kv_bytes)


class Quantised(Transformers):
    """transformers with its cache in 4 bits a number, except for the most recent tokens; expanded at every step."""

    kind = "quantised"

    def new_cache(self, reference: Reference) -> Any:
        from transformers import QuantizedCache

        for backend, package in _BACKENDS:
            if _is_installed(package):
                return QuantizedCache(backend=backend, config=reference.hf.config, nbits=4)
        raise LeftOutError("needs optimum-quanto or hqq: pip install optimum-quanto")

    def traffic(self, kv_bytes: float) -> Traffic:
        packed = kv_bytes / self._reference.dtype.itemsize / 2
        return Traffic(weights=self._subject.read_per_step(self._reference.dtype.itemsize), kv=packed)


def needed_bytes(subject: Subject, dtype: torch.dtype, batch: int, tokens: int) -> int:
    """Bytes of device memory for the model and the whole cache of `batch` sequences of `tokens` tokens."""
    return subject.weights_bytes + batch * _kv_bytes(subject, dtype, tokens)


def _kv_bytes(subject: Subject, dtype: torch.dtype, tokens: int) -> int:
    """Bytes of keys and values of a sequence of `tokens` tokens that a step reads: sliding layers have those of their
    window, recurrent ones none; layers that share read another one's once more."""
    model, numbers = subject.model, 0
    for shape, window, state in zip(model.shapes, model.windows, model.states, strict=True):
        rows = 0 if state is not None else tokens if window is None else min(tokens, window)
        numbers += 2 * shape.kv_heads * shape.dim * rows
    return numbers * dtype.itemsize


def _is_installed(package: str) -> bool:
    root, _, _ = package.partition(".")
    return importlib.util.find_spec(root) is not None and importlib.util.find_spec(package) is not None
