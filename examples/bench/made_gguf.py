"""A GGUF file of a known shape with random weights in Q8_0: as fast as the real one, and nothing is downloaded.

    python examples/bench/made_gguf.py --shape qwen2.5-0.5b --out made.gguf
    python examples/bench/made_gguf.py --shape qwen3-30b-a3b --layers 4 --out made.gguf

Its vocabulary has as many tokens as the real one, of which all but the bytes are names without a meaning.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np

from stratakv.runtime.bench.shapes import SHAPES, Shape

_ARCHITECTURES = {"llama": "llama", "qwen2": "qwen2", "qwen3": "qwen3", "qwen3_moe": "qwen3moe"}
"""Family -> architecture."""
_KIND = gguf.GGMLQuantizationType.Q8_0
_SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
_CONTEXT = 32768


def write(shape: Shape, path: Path) -> None:
    """Write the file. Raises SystemExit for families whose tensors are not known here."""
    if shape.family not in _ARCHITECTURES:
        raise SystemExit(f"{shape.family}: only {', '.join(_ARCHITECTURES)} are written here")
    writer: Any = gguf.GGUFWriter(str(path), _ARCHITECTURES[shape.family])
    writer.add_name(path.stem)
    writer.add_context_length(_CONTEXT)
    writer.add_embedding_length(shape.hidden)
    writer.add_block_count(shape.layers)
    writer.add_feed_forward_length(shape.intermediate)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.kv_heads)
    writer.add_key_length(shape.head_dim)
    writer.add_value_length(shape.head_dim)
    writer.add_rope_dimension_count(shape.head_dim)
    writer.add_rope_freq_base(shape.rope_theta)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_vocab_size(shape.vocabulary)
    if shape.experts is not None:
        count, chosen, width = shape.experts
        writer.add_expert_count(count)
        writer.add_expert_used_count(chosen)
        writer.add_expert_feed_forward_length(width)
    _add_tokens(writer, shape.vocabulary)
    for name, values in _tensors(shape):
        if values.dtype == np.uint8:
            writer.add_tensor(name, values, raw_dtype=_KIND)
        elif values.ndim > 1 and not name.endswith("ffn_gate_inp.weight"):
            writer.add_tensor(name, gguf.quantize(values, _KIND), raw_dtype=_KIND)
        else:
            writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _add_tokens(writer: Any, count: int) -> None:
    from tokenizers import pre_tokenizers

    known = [*_SPECIAL, *sorted(pre_tokenizers.ByteLevel.alphabet()), "th"]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("default")
    writer.add_token_list([*known, *(f"<unused{number}>" for number in range(count - len(known)))])
    writer.add_token_types([3] * len(_SPECIAL) + [1] * (count - len(_SPECIAL)))
    writer.add_token_merges(["t h"])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(2)


def _tensors(shape: Shape) -> Iterator[tuple[str, np.ndarray]]:
    random = np.random.default_rng(0)
    hidden, queries, keys = shape.hidden, shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim

    def matrix(rows: int, columns: int) -> np.ndarray:
        return random.standard_normal((rows, columns), dtype=np.float32) * np.float32(columns**-0.5)

    yield "token_embd.weight", matrix(shape.vocabulary, hidden)
    yield "output_norm.weight", np.ones(hidden, np.float32)
    if not shape.is_tied:
        yield "output.weight", matrix(shape.vocabulary, hidden)
    for layer in range(shape.layers):
        block = f"blk.{layer}."
        yield f"{block}attn_norm.weight", np.ones(hidden, np.float32)
        yield f"{block}ffn_norm.weight", np.ones(hidden, np.float32)
        for name, rows in (("q", queries), ("k", keys), ("v", keys)):
            yield f"{block}attn_{name}.weight", matrix(rows, hidden)
            if shape.family == "qwen2":
                yield f"{block}attn_{name}.bias", np.zeros(rows, np.float32)
        yield f"{block}attn_output.weight", matrix(hidden, queries)
        if shape.family.startswith("qwen3"):
            yield f"{block}attn_q_norm.weight", np.ones(shape.head_dim, np.float32)
            yield f"{block}attn_k_norm.weight", np.ones(shape.head_dim, np.float32)
        if shape.experts is not None:
            count, _, width = shape.experts
            yield f"{block}ffn_gate_inp.weight", matrix(count, hidden)
            for name, rows, columns in (("gate", width, hidden), ("up", width, hidden), ("down", hidden, width)):
                yield f"{block}ffn_{name}_exps.weight", _packed(random, count, rows, columns)
            continue
        for name, rows, columns in (
            ("gate", shape.intermediate, hidden), ("up", shape.intermediate, hidden),
            ("down", hidden, shape.intermediate),
        ):  # fmt: skip
            yield f"{block}ffn_{name}.weight", matrix(rows, columns)


def _packed(random: np.random.Generator, count: int, rows: int, columns: int) -> np.ndarray:
    """Matrices in Q8_0, made at once: 32 whole numbers in a block, and their scale."""
    numbers = random.integers(-127, 128, (count, rows, columns // 32, 32), dtype=np.int8)
    blocks = np.empty((count, rows, columns // 32, 34), np.uint8)
    blocks[..., :2] = np.array([columns**-0.5 / 73], np.float16).view(np.uint8)  # 73 is the root mean square of those
    blocks[..., 2:] = numbers.view(np.uint8)
    return blocks.reshape(count, rows, -1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", required=True, choices=sorted(SHAPES))
    parser.add_argument("--layers", type=int, help="of a model too large for this machine")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    shape = SHAPES[options.shape]
    write(replace(shape, layers=options.layers or shape.layers), options.out)


if __name__ == "__main__":
    main()
