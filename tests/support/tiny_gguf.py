"""A valid one-layer Llama as a GGUF file, 63 KiB, the same bytes every time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np

HIDDEN, FEED, HEADS, KV_HEADS, HEAD_DIM = 32, 48, 4, 2, 8
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]


def write_tiny_gguf(path: Path) -> Path:
    from tokenizers import pre_tokenizers

    tokens = [*SPECIAL, *sorted(pre_tokenizers.ByteLevel.alphabet()), "th"]
    writer: Any = gguf.GGUFWriter(str(path), "llama")
    writer.add_name("tiny")
    writer.add_context_length(256)
    writer.add_embedding_length(HIDDEN)
    writer.add_block_count(1)
    writer.add_feed_forward_length(FEED)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_rope_dimension_count(HEAD_DIM)
    writer.add_rope_freq_base(10_000.0)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(tokens)
    writer.add_token_types([3] * len(SPECIAL) + [1] * (len(tokens) - len(SPECIAL)))
    writer.add_token_merges(["t h"])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(2)
    _add_tensors(writer, len(tokens))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _add_tensors(writer: Any, vocabulary: int) -> None:
    random = np.random.default_rng(0)
    q8 = gguf.GGMLQuantizationType.Q8_0
    shapes = {
        "token_embd": (vocabulary, HIDDEN), "output_norm": (HIDDEN,), "blk.0.attn_norm": (HIDDEN,),
        "blk.0.ffn_norm": (HIDDEN,), "blk.0.attn_q": (HEADS * HEAD_DIM, HIDDEN),
        "blk.0.attn_k": (KV_HEADS * HEAD_DIM, HIDDEN), "blk.0.attn_v": (KV_HEADS * HEAD_DIM, HIDDEN),
        "blk.0.attn_output": (HIDDEN, HEADS * HEAD_DIM), "blk.0.ffn_gate": (FEED, HIDDEN),
        "blk.0.ffn_up": (FEED, HIDDEN), "blk.0.ffn_down": (HIDDEN, FEED),
    }  # fmt: skip
    for name, shape in shapes.items():
        values = (0.2 * random.standard_normal(shape)).astype(np.float32)
        if name.endswith("gate"):
            writer.add_tensor(f"{name}.weight", gguf.quantize(values, q8), raw_dtype=q8)
        else:
            writer.add_tensor(f"{name}.weight", values)


def borders(path: Path) -> list[int]:
    """Where the fields of a valid file's header begin and end."""
    reader: Any = gguf.GGUFReader(str(path))
    found = {0, 4, 8, 16, 24, int(reader.data_offset)}
    for field in [*list(reader.fields.values())[3:], *(tensor.field for tensor in reader.tensors)]:
        at = int(field.offset)
        found.add(at)
        for part in field.parts[:64]:
            at += int(part.nbytes)
            found.add(at)
    return sorted(found)


def key(name: str, kind: int, value: bytes) -> bytes:
    """One key of a header."""
    return len(name).to_bytes(8, "little") + name.encode() + kind.to_bytes(4, "little") + value


def with_keys(data: bytes, *keys: bytes, count: int | None = None) -> bytes:
    """A file with more keys; `count` is what its header says of them."""
    known = int.from_bytes(data[16:24], "little")
    added = len(keys) if count is None else count
    padding = -sum(map(len, keys)) % 32
    if keys and padding < 32:  # the tensors' data keeps its alignment
        filler = key("x" * ((padding - 13) % 32 + 1), 0, b"\0")
        keys, added = (*keys, filler), added + 1
    return data[:16] + (known + added).to_bytes(8, "little") + b"".join(keys) + data[24:]
