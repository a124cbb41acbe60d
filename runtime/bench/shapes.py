"""Models of known shapes with random weights: as fast as the real ones, and nothing is downloaded.

Speed does not depend on what the weights are, with one exception: which tokens an index finds, and so which pages
are wanted again at the next step, does. A hit rate of random weights is not that of a trained model.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..api.errors import DoesNotFitError
from ..engine.planner import available_memory
from ..model.model import Model
from ..model.model_files import ATTENTION, attention


@dataclass(frozen=True, slots=True)
class Shape:
    """A family, and the settings in `config.json` that decide what a step costs."""

    family: str
    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    rope_theta: float
    is_tied: bool = False
    """True if the head shares the embedding's weights."""
    most_layers: int = 0
    """The layers that it may be asked for, where they are more than it has."""
    experts: tuple[int, int, int] | None = None
    """How many there are, how many a token has, and their width."""

    def settings(self, positions: int, layers: int | None) -> dict[str, Any]:
        """Settings for the family's configuration class, with a window of at least `positions`."""
        found = {
            "num_hidden_layers": self.layers if layers is None else layers,
            "hidden_size": self.hidden, "intermediate_size": self.intermediate,
            "num_attention_heads": self.heads, "num_key_value_heads": self.kv_heads, "head_dim": self.head_dim,
            "vocab_size": self.vocabulary, "tie_word_embeddings": self.is_tied, "max_position_embeddings": positions,
            "rope_parameters": {"rope_type": "default", "rope_theta": self.rope_theta}, "sliding_window": None,
            "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0,
        }  # fmt: skip
        if self.family.startswith("qwen"):
            found["use_sliding_window"] = False
        if self.experts is not None:
            found |= dict(
                zip(("num_experts", "num_experts_per_tok", "moe_intermediate_size"), self.experts, strict=True)
            )
            found["norm_topk_prob"] = True
        return found


SHAPES = {
    "tiny": Shape("llama", 3, 48, 80, 6, 2, 8, 259, 1e4, most_layers=8),
    "smollm2-135m": Shape("llama", 30, 576, 1536, 9, 3, 64, 49152, 1e5, is_tied=True),
    "llama-3.2-1b": Shape("llama", 16, 2048, 8192, 32, 8, 64, 128256, 5e5, is_tied=True),
    "llama-3.1-8b": Shape("llama", 32, 4096, 14336, 32, 8, 128, 128256, 5e5),
    "mistral-7b-v0.3": Shape("mistral", 32, 4096, 14336, 32, 8, 128, 32768, 1e6),
    "qwen2.5-0.5b": Shape("qwen2", 24, 896, 4864, 14, 2, 64, 151936, 1e6, is_tied=True),
    "qwen2.5-7b": Shape("qwen2", 28, 3584, 18944, 28, 4, 128, 152064, 1e6),
    "qwen3-8b": Shape("qwen3", 36, 4096, 12288, 32, 8, 128, 151936, 1e6),
    "qwen3-30b-a3b": Shape("qwen3_moe", 48, 2048, 6144, 32, 4, 128, 151936, 1e6, experts=(128, 8, 768)),
}
"""The known shapes by name; `tiny` is for tests."""


def random_model(
    name: str, folder: Path, device: torch.device, dtype: torch.dtype, positions: int, layers: int | None = None
) -> Model:
    """Make a model of that shape, the same weights every time, and its `config.json` in `folder`. It has no tokenizer.

    Raises ValueError for a shape nobody knows, or more layers than it has. DoesNotFitError: memory has no room for it.
    """
    from transformers import AutoConfig, AutoModelForCausalLM
    from transformers.modeling_utils import AttentionInterface

    if name not in SHAPES:
        raise ValueError(f"shape is one of {', '.join(SHAPES)}; not {name!r}")
    shape = SHAPES[name]
    most = max(shape.layers, shape.most_layers)
    if layers is not None and layers > most:
        raise ValueError(f"layers is at most {most} for {name}, not {layers}")
    settings = shape.settings(positions, layers)
    (folder / "config.json").write_text(json.dumps({"model_type": shape.family, **settings}))
    config = AutoConfig.for_model(shape.family, **settings)
    AttentionInterface.register(ATTENTION, attention)
    with torch.device("meta"):
        needed = sum(weight.nbytes for weight in AutoModelForCausalLM.from_config(config, dtype=dtype).parameters())
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else available_memory()
    if needed > free:
        raise DoesNotFitError(
            f"{name} does not fit: {needed / 1e9:.3g} GB of weights, and {free / 1e9:.3g} GB of memory are free; ask "
            "for fewer layers, or another shape"
        )
    torch.manual_seed(0)
    with torch.device(device):
        hf = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation=ATTENTION)
    return Model(hf.to(device).eval(), None)
