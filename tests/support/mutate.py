"""Damaged model files: number n always gives the same damage."""

from __future__ import annotations

import copy
import json
import random
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import tiny_gguf

EXTREMES = [0, 1, 2, 255, 2**16, 2**31 - 1, 2**31, 2**32 - 1, 2**40, 2**60, 2**63 - 1, 2**63, 2**64 - 1]
STRANGE: list[Any] = [
    None, True, False, 0, 1, -1, 2, 3, 7, 1000, 10**6, 2**31, 2**60, 2**63, 2**64, 10**400, 0.5, -0.0, 1e300, "", "x",
    "../../etc/passwd", "\0", "\u202e", "a/b", "x" * 70_000, [], {}, [[]], [1, 2, 3], {"a": 1}, ["x"] * 1000,
    {"auto_map": {"AutoConfig": "evil.Evil"}}, [None], "llama", "gemma3_text", "mamba", "float64", "eager",
]  # fmt: skip
JSON_FILES = ["config.json", "generation_config.json", "tokenizer_config.json", "tokenizer.json"]

Damage = Callable[[random.Random, bytearray, list[int]], bytes]


def truncated(rng: random.Random, data: bytearray, borders: list[int]) -> bytes:
    return bytes(data[: max(0, rng.choice(borders) + rng.choice([-1, 0, 0, 1, 3]))])


def extreme(rng: random.Random, data: bytearray, borders: list[int]) -> bytes:
    """Integers at the borders of fields, where the header's own are."""
    for _ in range(rng.choice([1, 1, 2])):
        size, value = rng.choice([4, 8]), rng.choice(EXTREMES)
        at = rng.choice(borders)
        data[at : at + size] = value.to_bytes(8, "little")[:size]
    return bytes(data)


def noisy(rng: random.Random, data: bytearray, borders: list[int]) -> bytes:
    end = rng.choice([borders[-1], len(data)])
    for _ in range(rng.choice([1, 2, 16, 200])):
        data[rng.randrange(end)] = rng.randrange(256)
    return bytes(data)


def flipped(rng: random.Random, data: bytearray, borders: list[int]) -> bytes:
    data[rng.randrange(borders[-1])] ^= 1 << rng.randrange(8)
    return bytes(data)


def spliced(rng: random.Random, data: bytearray, borders: list[int]) -> bytes:
    """A run of fields is left out or repeated."""
    begin, end = sorted(rng.sample(borders, 2))
    return bytes(data[:begin] + (data[begin:end] * rng.choice([0, 2])) + data[end:])


def lengthened(rng: random.Random, data: bytearray, borders: list[int]) -> bytes:
    return bytes(data) + rng.randbytes(rng.choice([1, 31, 4096]))


def _more_keys(rng: random.Random, data: bytearray, borders: list[int]) -> bytes:
    which = rng.randrange(6)
    if which == 0:  # arrays in arrays
        deep = rng.choice([2, 100, 5000])
        value = struct.pack("<IQ", 9, 1) * deep + struct.pack("<IQB", 0, 1, 7)
        return tiny_gguf.with_keys(bytes(data), tiny_gguf.key("deep", 9, value))
    if which == 1:
        count = rng.choice([100, 900, 30_000, 70_000])
        return tiny_gguf.with_keys(bytes(data), *(tiny_gguf.key(f"k{i}", 0, b"\1") for i in range(count)))
    if which == 2:
        return tiny_gguf.with_keys(bytes(data), tiny_gguf.key(rng.choice(["general.name", "same"]), 0, b"\1") * 2)
    if which == 3:
        length = rng.choice(EXTREMES)
        return tiny_gguf.with_keys(bytes(data), tiny_gguf.key("long", 8, struct.pack("<Q", length) + b"x" * 40))
    if which == 4:
        value = struct.pack("<IQ", rng.choice([0, 4, 7, 8, 9, 13]), rng.choice(EXTREMES)) + bytes(64)
        return tiny_gguf.with_keys(bytes(data), tiny_gguf.key("list", 9, value))
    name = rng.choice(["gemma3.block_count", "general.alignment", "llama.attention.key_length", "llama.expert_count"])
    value = struct.pack("<I", rng.choice(EXTREMES) % 2**32)
    return tiny_gguf.with_keys(bytes(data), tiny_gguf.key(name, 4, value))


def _number_changed(rng: random.Random, data: bytearray, borders: list[int]) -> bytes:
    """A size that is possible but not this model's."""
    names = [b"block_count", b"embedding_length", b"feed_forward_length", b"head_count", b"head_count_kv",
             b"rope.dimension_count", b"vocab_size", b"context_length", b"bos_token_id", b"eos_token_id"]  # fmt: skip
    at = data.index(rng.choice(names)) + 4
    while data[at : at + 4] != struct.pack("<I", 4):  # its type, then the number
        at += 1
    data[at + 4 : at + 8] = struct.pack("<I", rng.choice([0, 1, 2, 3, 5, 16, 31, 64, 260, 511, 1024, 60_000, 2**20]))
    return bytes(data)


def mutated_gguf(number: int, whole: Path, target: Path) -> str:
    """Write damage `number` of `whole`; returns its kind."""
    rng = random.Random(number)
    kinds: list[Damage] = [
        truncated, extreme, noisy, flipped, spliced, lengthened, _more_keys, _number_changed,
    ]  # fmt: skip
    kind = kinds[number % len(kinds)]
    target.write_bytes(kind(rng, bytearray(whole.read_bytes()), tiny_gguf.borders(whole)))
    return f"gguf {kind.__name__.strip('_')}"


def _safetensors_borders(data: bytes) -> list[int]:
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    ends = [8 + length + entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
    inside = [8 + at for at, byte in enumerate(data[8 : 8 + length]) if byte in b'{}[],:"']
    return sorted({0, 8, *inside[:400], *ends[:-1], 8 + length})


def _header_changed(rng: random.Random, data: bytearray, borders: list[int]) -> bytes:
    length = int.from_bytes(data[:8], "little")
    header = _changed(rng, json.loads(data[8 : 8 + length]))
    written = _as_json(rng, header)
    return len(written).to_bytes(8, "little") + written + bytes(data[8 + length :])


def _changed(rng: random.Random, root: Any) -> Any:
    """A JSON value with one or two places in it replaced, left out or moved by a little."""
    for _ in range(rng.choice([1, 1, 2])):
        places: list[tuple[Any, Any]] = []
        pending = [root]
        while pending:
            value = pending.pop()
            inner = list(value.items()) if isinstance(value, dict) else list(enumerate(value))[:20]
            if len(inner) > 40:
                inner = rng.sample(inner, 40)
            places += [(value, name) for name, _ in inner]
            pending += [item for _, item in inner if isinstance(item, dict | list)]
        if not places:
            return root
        where, name = rng.choice(places)
        old = where[name]
        if isinstance(where, dict) and rng.random() < 0.15:
            del where[name]
        elif isinstance(old, int) and rng.random() < 0.4:
            where[name] = old + rng.choice([-1, 1, 3, 64, -old])
        else:
            where[name] = copy.deepcopy(rng.choice(STRANGE))
    return root


def _as_json(rng: random.Random, value: Any) -> bytes:
    text = json.dumps(value)
    if rng.random() < 0.1:
        text = text.replace("null", rng.choice(["NaN", "Infinity", "1e999", "-0"]), 1)
    return text.encode()


def _json_wrecked(rng: random.Random, data: bytearray, borders: list[int]) -> bytes:
    which = rng.randrange(6)
    if which == 0:
        deep = rng.choice([20, 33, 900, 100_000])
        return b'{"a":' * deep + b"1" + b"}" * deep
    if which == 1:
        return data.replace(b"{", b'{"deep":' + b"[" * 50_000 + b"]" * 50_000 + b",", 1)
    if which == 2:
        many = b",".join(b'"k%d":0' % i for i in range(rng.choice([1000, 100_000])))
        return data.replace(b"{", b"{" + many + b",", 1)
    if which == 3:
        twice = rng.choice([b'"model_type":"gpt2"', b'"vocab_size":9', b'"version":"1.0"', b'"bos_token":"x"'])
        return data.replace(b"{", b"{" + twice + b"," + twice + b",", 1)
    if which == 4:
        return rng.choice([b"", b"[]", b"null", b"\xff\xfe{", b"\xef\xbb\xbf{}", b"{}", b"\0" * 100, b'"x"', b"{" * 9])
    asks = rng.choice([
        b'"auto_map":{"AutoConfig":"a.B"}', b'"num_labels":1152921504606846976', b'"trust_remote_code":true',
        b'"_attn_implementation":"someone/kernel"', b'"sliding_window":1152921504606846976', b'"extra":1e999',
    ])  # fmt: skip
    return data.replace(b"{", b"{" + asks + b",", 1)


def mutated_directory(number: int, target: Path) -> str:
    """Damage one file of the model in `target`, a copy; returns which and how."""
    rng = random.Random(number)
    name = ["model.safetensors", *JSON_FILES][number % 5]
    path = target / name
    data = bytearray(path.read_bytes())
    if name == "model.safetensors":
        kinds: list[Damage] = [truncated, extreme, noisy, flipped, spliced, lengthened, _header_changed]
        borders = _safetensors_borders(data)
    else:
        kinds = [_json_changed, _json_changed, _json_changed, _json_wrecked, truncated, noisy]
        borders = [*[at for at, byte in enumerate(data) if byte in b'{}[],:"'][:2000], len(data)]
    kind = kinds[number // 5 % len(kinds)]
    path.write_bytes(kind(rng, data, borders))
    return f"{name} {kind.__name__.strip('_')}"


def _json_changed(rng: random.Random, data: bytearray, borders: list[int]) -> bytes:
    return _as_json(rng, _changed(rng, json.loads(data)))
