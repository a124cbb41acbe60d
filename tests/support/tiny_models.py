"""Small random models of every supported family, with a byte-level tokenizer. Nothing is downloaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
VOCABULARY = 256 + len(SPECIAL)

_SHAPE: dict[str, Any] = {
    "vocab_size": VOCABULARY, "hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 3,
    "num_attention_heads": 6, "num_key_value_heads": 2, "max_position_embeddings": 4096,
    "bos_token_id": 0, "eos_token_id": 2, "pad_token_id": 0,
}  # fmt: skip

FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", {}),
    "mistral": ("Mistral", {"sliding_window": None}),
    "mistral-sliding": ("Mistral", {"sliding_window": 40}),
    "qwen2": ("Qwen2", {}),
    "qwen3": ("Qwen3", {"head_dim": 16}),
    "gemma3_text": (
        "Gemma3Text",
        {"head_dim": 16, "sliding_window": 40, "query_pre_attn_scalar": 16,
         "layer_types": ["sliding_attention", "full_attention", "sliding_attention"]},
    ),
    "phi3": ("Phi3", {"partial_rotary_factor": 0.5, "sliding_window": None}),
    "olmo2": ("Olmo2", {}),
    "smollm3": ("SmolLM3", {"no_rope_layers": [1, 0, 1]}),
}  # fmt: skip
"""Name -> (transformers class prefix, what differs from the common shape)."""


def save_tiny_model(folder: Path, family: str = "llama", *, chat: bool = True, **changes: Any) -> Path:
    """A random model of `family` in `folder`, the same weights every time."""
    import transformers
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    prefix, differs = FAMILIES[family]
    config = getattr(transformers, f"{prefix}Config")(**{**_SHAPE, **differs, **changes})
    torch.manual_seed(0)
    model_class = "Gemma3ForCausalLM" if prefix == "Gemma3Text" else f"{prefix}ForCausalLM"
    model = getattr(transformers, model_class)(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:  # larger than at initialisation, so that attention is not flat
                parameter.normal_(0.0, 0.2)
    model.save_pretrained(folder)

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate([*SPECIAL, *alphabet])}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token=SPECIAL[0], eos_token=SPECIAL[2], additional_special_tokens=SPECIAL
    )
    if chat:
        tokenizer.chat_template = CHATML
    tokenizer.save_pretrained(folder)
    return folder


def reference_model(folder: Path, dtype: torch.dtype = torch.float32) -> Any:
    """transformers' own model, dense SDPA attention."""
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, attn_implementation="sdpa").eval()
