"""llama.cpp, where its wheel is installed: the same GGUF file, its KV cache in 8 bits.

Its weights stay as the file has them (4 bits for the default model), ours and transformers' are expanded to 16 or
32; so it reads fewer bytes of weights per step, and more of KV as soon as the context exceeds the budget.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from . import llama_c
from .contestant import Contestant, LeftOutError


class LlamaCpp(Contestant):
    """llama.cpp with one sequence. Raises LeftOutError where it cannot take part.

    Args:
        gguf: the model's files; llama.cpp finds the other parts of a split one by itself.
        tokens: number of tokens of the sequence, over both turns.
    """

    def __init__(self, gguf: list[Path], batch: int, tokens: int, vocabulary: int) -> None:
        if not llama_c.is_installed():
            raise LeftOutError(f"needs {llama_c.PACKAGE}: pip install 'stratakv[compare]'")
        if not gguf:
            raise LeftOutError("the model is no GGUF file")
        if batch > 1:
            raise LeftOutError("measured with one sequence only")
        super().__init__(batch, {"baseline": "llama.cpp", "version": llama_c.version(), "kv_dtype": "q8_0"})
        self.name = "llama.cpp q8_0"
        try:
            self._llama = llama_c.LlamaModel(
                gguf[0], context=tokens, threads=torch.get_num_threads(), kv="q8_0", flash=True
            )
        except llama_c.LlamaCppError as error:
            raise LeftOutError(str(error)) from error
        if (size := self._llama.vocabulary_size) != vocabulary:
            self._llama.close()
            raise LeftOutError(f"its vocabulary has {size} tokens, ours {vocabulary}")

    def extend(self, prompts: np.ndarray) -> None:
        self._next(prompts[0])

    def fill(self, prompts: np.ndarray) -> None:
        """Prefill the context, without reporting its time: llama.cpp offers no way to write into its cache."""
        self._next(prompts[0])

    def decode(self, tokens: list[int]) -> None:
        self._next(np.array(tokens))

    def _next(self, tokens: np.ndarray) -> int:
        """The likeliest token after `tokens`."""
        return int(self._llama.extend(tokens).argmax())

    def close(self) -> None:
        self._llama.close()
