"""llama.cpp through llama-cpp-python, where that is installed: the same GGUF file, its KV cache in 8 bits.

Its weights stay as the file has them (4 bits for the default model), ours and transformers' are expanded to 16 or
32; so it reads fewer bytes of weights per step, and more of KV as soon as the context exceeds the budget.
"""

from __future__ import annotations

import importlib
import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ...storage.file_names import readable_path
from .contestant import Contestant, LeftOutError


class LlamaCpp(Contestant):
    """One sequence. Raises LeftOutError where it cannot take part.

    Args:
        tokens: the sequence's, over both turns.
    """

    def __init__(self, gguf: Path | None, batch: int, tokens: int, vocabulary: int) -> None:
        if importlib.util.find_spec("llama_cpp") is None:
            raise LeftOutError("llama-cpp-python is not installed")
        if gguf is None:
            raise LeftOutError("the model is no GGUF file")
        if batch > 1:
            raise LeftOutError("measured with one sequence only")
        module = importlib.import_module("llama_cpp")
        super().__init__(batch, {"baseline": "llama.cpp", "version": str(module.__version__), "kv_dtype": "q8_0"})
        self.name = "llama.cpp q8_0"
        threads = torch.get_num_threads()
        with readable_path(gguf) as path:
            self._llama: Any = module.Llama(
                str(path), n_ctx=tokens, n_batch=512, type_k=module.GGML_TYPE_Q8_0, type_v=module.GGML_TYPE_Q8_0,
                flash_attn=True, n_threads=threads, n_threads_batch=threads, verbose=False,
            )  # fmt: skip
        if self._llama.n_vocab() != vocabulary:
            raise LeftOutError(f"its vocabulary has {self._llama.n_vocab()} tokens, ours {vocabulary}")

    def extend(self, prompts: np.ndarray) -> None:
        self._llama.eval(prompts[0].tolist())
        self._likeliest()

    def fill(self, prompts: np.ndarray) -> None:
        """It offers no way to write into its cache: the context is prefilled, and that is not reported."""
        self._llama.eval(prompts[0].tolist())

    def decode(self, tokens: list[int]) -> None:
        self._llama.eval(tokens)
        self._likeliest()

    def _likeliest(self) -> int:
        llama = self._llama
        logits = np.ctypeslib.as_array(llama._ctx.get_logits(), shape=(llama.n_vocab(),))
        return int(logits.argmax())

    def close(self) -> None:
        self._llama.close()
