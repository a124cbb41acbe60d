"""The model that is measured, transformers' own forward pass over the same weights, and the tokens both are fed."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..api.config import KVConfig
from ..chat.documents import read_text_file
from ..chat.runtime import Runtime
from ..engine.planner import free_memory
from ..engine.profile import Profiles
from ..model.locate import locate
from ..model.model import Model
from ..model.packing import packed_twin, packing_of, require_device
from ..model.weights import decoder_over
from ..process.devices import pick_device, pick_dtype
from .options import BenchOptions
from .shapes import random_weights

_ROWS = 512
"""Prompt tokens that transformers is given at a time: this bounds the scores that are in memory at once."""
_STRIDE = 1009
"""Sequences of a batch begin this many tokens apart in the text: none shares a page with another."""


class Subject:
    """One model, in memory once: everybody who is timed reads its weights.

    Args:
        hf: transformers' model. tokenizer: its own; None: it has none.
        text: token ids to draw from, over and over; None: random ones.
    """

    def __init__(self, name: str, hf: Any, tokenizer: Any, directory: Path, text: np.ndarray | None) -> None:
        self.name, self.text, self._hf = name, text, hf
        self.model = Model(decoder_over(hf), tokenizer)
        self._directory, self._profiles = directory, Profiles(directory, name)
        self._references: dict[torch.dtype, Reference] = {}
        self._by_weights = {self.model.weights: self.model}

    @classmethod
    def load(cls, options: BenchOptions, folder: Path, positions: int, log: Callable[[str], None]) -> Subject:
        """Load `options.model`, or make `options.shape` up in `folder` with a window of `positions`."""
        device = pick_device(options.device)
        kind = pick_dtype(options.dtype, device)
        dtype: torch.dtype = getattr(torch, kind)
        if options.shape is not None:
            hf = random_weights(options.shape, folder, device, dtype, positions, options.layers)
            found = cls(options.shape, hf, None, folder, None)
        else:
            why = "once: transformers multiplies with the same weights"
            directory = locate(options.model, kind, on_convert=lambda name: log(f"converting {name} {why}"))
            model = Model.load(directory, device, dtype, modules="transformers")
            text = read_text_file(options.text or _bundled_text())
            ids = model.tokenizer(text, add_special_tokens=False).input_ids
            found = cls(options.model, model.hf, model.tokenizer, directory, np.array(ids, dtype=np.uint32))
        log(f"{found.name}: {found.weights_bytes / 1e9:.3g} GB of {kind} weights on {device}")
        return found

    def runtime(self, kv: KVConfig, model: Model | None = None) -> Runtime:
        """Open a runtime with a store of its own over the shared model (or a twin of it)."""
        return Runtime.over(model or self.model, self._directory, kv, self._profiles)

    def with_weights(self, weights: str) -> Model:
        """The model whose decode multiplies with these weights; made once. Raises ValueError if that cannot be."""
        if weights not in self._by_weights:
            hf, own = self.model.hf, self.model
            if (packing := packing_of(weights, own.device)) is not None:
                require_device(packing, own.device, str(own.dtype).removeprefix("torch."))
                hf = packed_twin(hf, packing)
            model = Model(hf, own.tokenizer)
            model.use_weights(weights)
            self._by_weights[weights] = model
        return self._by_weights[weights]

    def tokens(self, sequence: int, count: int) -> np.ndarray:
        """Token ids uint32 `[count]` for one sequence of a batch."""
        if self.text is None:
            rng = np.random.default_rng(sequence)
            return rng.integers(1, self.model.config.vocab_size, count).astype(np.uint32)
        return np.resize(np.roll(self.text, -_STRIDE * sequence), count)

    @property
    def weights_bytes(self) -> int:
        return sum(weight.nbytes for weight in self.model.hf.parameters())

    @property
    def held_bytes(self) -> int:
        """Bytes of all models' weights together."""
        every = [weight for model in self._by_weights.values() for weight in model.hf.parameters()]
        return sum({id(weight): weight.nbytes for weight in every}.values())

    def read_per_step(self, itemsize: int) -> int:
        """Bytes of weights, of `itemsize` each, that a decode step must read: of embeddings only a row each, unless one
        is the head as well."""
        return int(sum(weight.numel() for weight in _read(self.model)) * itemsize)

    def read_by(self, model: Model) -> int:
        """The same for one of our models; scales and norms of weights in 8 bits on a CPU are little beside them."""
        if model.packing is not None:
            return sum(weight.nbytes for weight in _read(model))
        return self.read_per_step(1 if model.weights == "int8" else model.dtype.itemsize)

    def pair(self, dtype: torch.dtype) -> tuple[Model, Reference]:
        """Our model and transformers' in that dtype."""
        if dtype == self.model.dtype:
            return self.model, self.reference(dtype)
        hf = _twin(self._hf, dtype)
        return Model(decoder_over(hf), self.model.tokenizer), Reference(hf, dtype, self.model.device)

    def reference(self, dtype: torch.dtype) -> Reference:
        """transformers' model in that dtype; made once."""
        if dtype not in self._references:
            self._references[dtype] = Reference(_twin(self._hf, dtype), dtype, self.model.device)
        return self._references[dtype]

    def eager(self, dtype: torch.dtype) -> Reference:
        """transformers' model in a dtype that there is a `reference` in, with its plain attention."""
        return Reference(_twin(self.reference(dtype).hf, dtype, attention="eager"), dtype, self.model.device)

    @property
    def dense_dtypes(self) -> list[torch.dtype]:
        """Our dtype, and where 16-bit matrices are slow the one in which transformers is fastest."""
        return list(dict.fromkeys([self.model.prefill_dtype, self.model.dtype]))

    def has_room_for(self, dtype: torch.dtype, options: BenchOptions) -> bool:
        """True if weights in `dtype` beside ours take at most half of the memory that is free."""
        if dtype == self.model.dtype or dtype in self._references:
            return True
        free = free_memory(self.model.device)
        if self.model.device.type == "cuda" and options.gpu_memory_cap is not None:
            free = min(free, int(1e9 * options.gpu_memory_cap) - self.weights_bytes)
        return 2 * self.weights_bytes * dtype.itemsize // self.model.dtype.itemsize <= free


class Reference:
    """transformers' own model with its own SDPA attention."""

    def __init__(self, hf: Any, dtype: torch.dtype, device: torch.device) -> None:
        self.hf, self.dtype, self.device = hf, dtype, device
        names = inspect.signature(hf.forward).parameters
        self._argument = "cache" if "cache" in names else "past_key_values"  # its name in older versions

    @property
    def dtype_name(self) -> str:
        return str(self.dtype).removeprefix("torch.")

    def new_cache(self) -> Any:
        from transformers import DynamicCache

        return DynamicCache(config=self.hf.config)

    @torch.inference_mode()
    def extend(self, cache: Any, tokens: np.ndarray) -> torch.Tensor:
        """Append tokens `[B, T]`. Returns the last logits, fp32 `[B, vocabulary]`."""
        ids = torch.from_numpy(tokens.astype(np.int64)).to(self.device)
        for rows in torch.split(ids, _ROWS, 1):
            out = self.hf(rows, logits_to_keep=1, **{self._argument: cache})
        logits: torch.Tensor = out.logits[:, -1].float()
        return logits


def _read(model: Model) -> list[torch.Tensor]:
    """The weights that a step reads whole."""
    inner, head = model.inner, model.hf.lm_head.weight
    tables = [inner.embed_tokens.weight, *([inner.inputs.table] if hasattr(inner, "inputs") else [])]
    left = {id(table) for table in tables if table is not head}
    return [weight for weight in model.hf.parameters() if id(weight) not in left]


def _twin(hf: Any, dtype: torch.dtype, attention: str = "sdpa") -> Any:
    """Make the same transformers model with that attention, or plain where it has none. It shares the weights, unless
    `dtype` is another."""
    weights = {id(w): w if w.dtype == dtype else _cast(w, dtype) for w in hf.parameters()}
    found = copy.deepcopy(hf, weights)
    found.set_attn_implementation(attention if found._supports_sdpa else "eager")
    return found


def _cast(weight: torch.nn.Parameter, dtype: torch.dtype) -> torch.nn.Parameter:
    return torch.nn.Parameter(weight.detach().to(dtype), requires_grad=False)


def _bundled_text() -> Path:
    path = Path(__file__).resolve().parents[2] / "examples" / "northanger_abbey.txt"
    if not path.is_file():
        raise FileNotFoundError("the bundled text is only in a source checkout; give a text")
    return path
