"""A bounded look at a GGUF file's header before any parser sees it.

    magic "GGUF" | version u32 | tensor count u64 | key count u64
    keys         name | type u32 | value          a string is its length u64 and its bytes,
    tensors      name | dims u32 | dim u64 ... | type u32 | offset u64       an array its type u32, count u64, items
    padding to general.alignment, then the tensors' data

The parsers behind `locate` believe what a file says: a count of 2^60 in 100 bytes keeps them busy for ever.
Here every length is compared with the bytes that are left before anything is read or counted, so the
work is bounded by the file's size. What passed has, besides: no name twice, no array in an array, known
types, tensors inside the file that do not overlap, and sizes (`numbers_check`) that its weights bear out.
"""

from __future__ import annotations

import mmap
import struct
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any

from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

from .errors import ModelFileError
from .numbers_check import check_allocation, check_number, check_shape, shown

MAX_STRING = 1 << 20
MAX_NAME = 1 << 16
MAX_TENSORS = 1 << 16
MAX_KEYS = 1 << 10
"""Known files have fewer than 100. transformers' time grows with the square: 15 s for 30,000."""
MAX_VOCABULARY = 1 << 19
"""Items of each array that describes the vocabulary; other arrays have up to `MAX_ITEMS` together."""
MAX_ITEMS = 1 << 16
MAX_ALIGNMENT = 1 << 16
ARCHITECTURES = frozenset({"llama", "mistral", "qwen2", "qwen3", "gemma3", "phi3"})
"""What our families (`numbers_check.FAMILIES`) are called in GGUF files; transformers reads no others of them."""

_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "B", 10: "Q", 11: "q", 12: "d"}
_BOOL, _STRING, _ARRAY = 7, 8, 9
_MIN_KEY, _MIN_TENSOR = 8 + 4 + 1, 8 + 4 + 8 + 4 + 8
_VOCABULARY = {
    "tokenizer.ggml.tokens": _STRING, "tokenizer.ggml.merges": _STRING,
    "tokenizer.ggml.scores": 6, "tokenizer.ggml.token_type": 5,
}  # fmt: skip
_NUMBERS = {
    "block_count": "num_hidden_layers", "embedding_length": "hidden_size", "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads", "attention.head_count_kv": "num_key_value_heads",
    "attention.key_length": "head_dim", "attention.value_length": "head_dim", "rope.dimension_count": "head_dim",
    "attention.sliding_window": "sliding_window", "context_length": "max_position_embeddings",
    "vocab_size": "vocab_size",
}  # fmt: skip
_REQUIRED = ("block_count", "embedding_length", "feed_forward_length", "attention.head_count")
_ALSO_REQUIRED = {
    "mistral": ("attention.head_count_kv",), "qwen2": ("attention.head_count_kv",),
    "qwen3": ("attention.head_count_kv",), "gemma3": ("attention.head_count_kv", "attention.key_length"),
}  # fmt: skip
"""Where transformers would put in a constant instead of deriving it."""
_QWEN3_HEAD_DIM = 128
"""transformers does not read it from the file."""


@dataclass(frozen=True, slots=True)
class _Items:
    """An array: its items' type and how many there are."""

    kind: int
    count: int


@dataclass(slots=True)
class _Header:
    path: Path
    data: mmap.mmap
    at: int = 0
    keys: dict[str, Any] = field(default_factory=dict)
    items: int = 0

    def fail(self, name: str, problem: str) -> ModelFileError:
        return ModelFileError(f"{self.path}: not a readable GGUF model: {name}: {problem}; is it complete?")

    def unpack(self, code: str, name: str) -> Any:
        size = struct.calcsize(f"<{code}")
        if size > len(self.data) - self.at:
            raise self.fail(name, f"the file ends at byte {len(self.data)}, inside this field")
        (value,) = struct.unpack_from(f"<{code}", self.data, self.at)
        self.at += size
        return value

    def skip(self, size: int, name: str) -> None:
        if size > len(self.data) - self.at:
            raise self.fail(name, f"{size} bytes long, the file has {len(self.data) - self.at} more")
        self.at += size

    def string(self, name: str, longest: int) -> bytes:
        length = self.unpack("Q", name)
        if length > longest:
            raise self.fail(name, f"a string of {length} bytes, at most {longest} are allowed")
        start = self.at
        self.skip(length, name)
        return self.data[start : self.at]

    def name(self, where: str) -> str:
        found = self.string(where, MAX_NAME)
        try:
            text = found.decode()
        except UnicodeDecodeError as error:
            raise self.fail(where, f"{shown(found)} is not UTF-8") from error
        if not text:
            raise self.fail(where, "it is empty")
        return text


@dataclass(frozen=True, slots=True)
class Contents:
    """What a GGUF file holds."""

    elements: int
    """Numbers in all tensors together."""
    header_bytes: int
    """All that is said before the tensors' data; most of it is the vocabulary."""


def check_gguf(path: Path) -> Contents:
    """Raises ModelFileError, naming file and field, unless the header can be believed."""
    size = path.stat().st_size
    if size < 24:
        raise ModelFileError(f"{path}: not a readable GGUF model: header: {size} bytes, it has 24; is it complete?")
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        header = _Header(path, data)
        magic = data[:4]
        if magic != b"GGUF":
            raise header.fail("magic", f"{shown(magic)}, expected b'GGUF'")
        header.at = 4
        version = header.unpack("I", "version")
        if version not in (2, 3):
            raise header.fail("version", f"{version}, this program reads 2 and 3, little-endian")
        tensors = _count(header, "tensor count", MAX_TENSORS, _MIN_TENSOR)
        keys = _count(header, "key count", MAX_KEYS, _MIN_KEY)
        for number in range(keys):
            _read_key(header, number)
        elements = _check_tensors(header, tensors)
        _check_sizes(header, elements, tensors)
        return Contents(elements, header.at)


def _count(header: _Header, name: str, most: int, smallest: int) -> int:
    count: int = header.unpack("Q", name)
    possible = min(most, (len(header.data) - header.at) // smallest)
    if count > possible:
        raise header.fail(name, f"{count}, at most {possible} are possible here")
    return count


def _read_key(header: _Header, number: int) -> None:
    name = header.name(f"key {number}")
    where = f"key {shown(name)}"
    if name in header.keys:
        raise header.fail(where, "it is there twice")
    kind = header.unpack("I", where)
    if kind == _STRING:
        value: Any = header.string(where, MAX_STRING)
    elif kind == _ARRAY:
        value = _skip_array(header, name, where)
    else:
        value = _scalar(header, kind, where)
    header.keys[name] = value


def _scalar(header: _Header, kind: int, where: str) -> Any:
    if kind not in _SCALARS:
        raise header.fail(where, f"a value of the unknown type {kind}")
    value = header.unpack(_SCALARS[kind], where)
    if kind == _BOOL and value > 1:
        raise header.fail(where, f"{value}, a truth value is 0 or 1")
    return bool(value) if kind == _BOOL else value


def _skip_array(header: _Header, name: str, where: str) -> _Items:
    kind = header.unpack("I", where)
    if kind != _VOCABULARY.get(name, kind):
        raise header.fail(where, f"items of type {kind}, expected {_VOCABULARY[name]}")
    if kind == _ARRAY:
        raise header.fail(where, "an array of arrays")
    if kind != _STRING and kind not in _SCALARS:
        raise header.fail(where, f"items of the unknown type {kind}")
    smallest = 8 if kind == _STRING else struct.calcsize(f"<{_SCALARS[kind]}")
    big = name in _VOCABULARY
    count = _count(header, where, MAX_VOCABULARY if big else MAX_ITEMS - header.items, smallest)
    header.items += 0 if big else count
    if kind == _STRING:
        _skip_strings(header, count, where)
    else:
        header.skip(count * smallest, where)
    return _Items(kind, count)


def _skip_strings(header: _Header, count: int, where: str) -> None:
    """As `_Header.string`, but without a call per string: vocabularies have hundreds of thousands."""
    data, at, last = header.data, header.at, len(header.data) - 8
    unpack = struct.Struct("<Q").unpack_from
    for _ in range(count):
        if at > last:
            break
        (length,) = unpack(data, at)
        if length > MAX_STRING:
            raise header.fail(where, f"a string of {length} bytes, at most {MAX_STRING} are allowed")
        at += 8 + length
    else:
        header.skip(at - header.at, where)
        return
    raise header.fail(where, f"the file ends at byte {len(data)}, inside this field")


def _check_tensors(header: _Header, count: int) -> int:
    """Returns how many numbers they hold together."""
    names: set[str] = set()
    spans, elements = [], 0
    for number in range(count):
        name = header.name(f"tensor {number}")
        where = f"tensor {shown(name)}"
        if name in names:
            raise header.fail(where, "it is there twice")
        names.add(name)
        shape = _shape(header, where)
        offset_at, size = _size(header, shape, where)
        spans.append((offset_at, size, where))
        elements += prod(shape)
    alignment = header.keys.get("general.alignment", 32)
    if type(alignment) is not int or not 1 <= alignment <= MAX_ALIGNMENT or alignment & (alignment - 1):
        raise header.fail("general.alignment", f"{shown(alignment)}, expected a power of two up to {MAX_ALIGNMENT}")
    start = -(-header.at // alignment) * alignment
    end = 0
    for offset, size, where in sorted(spans):
        if offset % alignment:
            raise header.fail(where, f"offset {offset} is no multiple of the alignment {alignment}")
        if offset < end:
            raise header.fail(where, f"offset {offset} is inside the tensor before, which ends at {end}")
        end = offset + size
        if start + end > len(header.data):
            raise header.fail(where, f"it ends at byte {start + end}, the file at {len(header.data)}")
    return elements


def _shape(header: _Header, where: str) -> list[int]:
    dims = header.unpack("I", where)
    if not 1 <= dims <= 4:
        raise header.fail(where, f"{dims} dimensions, expected 1 to 4")
    shape = [header.unpack("Q", where) for _ in range(dims)]
    if min(shape) < 1 or prod(shape) >= 1 << 63:
        raise header.fail(where, f"its shape is {shown(shape)}")
    return shape


def _size(header: _Header, shape: list[int], where: str) -> tuple[int, int]:
    """Offset in the data, and bytes there."""
    kind = header.unpack("I", where)
    try:
        block, block_bytes = GGML_QUANT_SIZES[GGMLQuantizationType(kind)]
    except (ValueError, KeyError) as error:
        raise header.fail(where, f"data of the unknown type {kind}") from error
    if shape[0] % block:
        raise header.fail(where, f"rows of {shape[0]} numbers, its type packs {block} at a time")
    return header.unpack("Q", where), prod(shape) // block * block_bytes


def _check_sizes(header: _Header, elements: int, tensors: int) -> None:
    keys = header.keys
    architecture = keys.get("general.architecture")
    if not isinstance(architecture, bytes):
        raise header.fail("general.architecture", f"{shown(architecture)}, expected a string")
    family = architecture.decode("ascii", "replace")
    if family not in ARCHITECTURES:
        raise ModelFileError(
            f"{header.path}: model family {shown(family)} is not supported; "
            f"supported in GGUF files: {', '.join(sorted(ARCHITECTURES))}"
        )
    for name, value in keys.items():
        prefix, _, rest = name.partition(".")
        if rest in _NUMBERS and prefix != family:
            raise header.fail(f"key {shown(name)}", f"the architecture is {family}")
        if rest in _NUMBERS:
            check_number(header.path, name, _NUMBERS[rest], value)
    required = [f"{family}.{rest}" for rest in _REQUIRED + _ALSO_REQUIRED.get(family, ())]
    for name in [*required, "tokenizer.ggml.tokens"]:
        if name not in keys:
            raise header.fail(name, "the file does not say it")
    _check_vocabulary(header)
    numbers = _numbers(keys, family)
    check_shape(header.path, numbers)
    check_allocation(header.path, numbers, elements, tensors)


def _check_vocabulary(header: _Header) -> None:
    tokens = header.keys["tokenizer.ggml.tokens"]
    for name in _VOCABULARY:
        found = header.keys.get(name)
        if found is not None and not isinstance(found, _Items):
            raise header.fail(name, f"{shown(found)}, expected an array")
    for name in ("tokenizer.ggml.scores", "tokenizer.ggml.token_type"):
        found = header.keys.get(name)
        if found is not None and found.count != tokens.count:
            raise header.fail(name, f"{found.count} items for {tokens.count} tokens")


def _numbers(keys: dict[str, Any], family: str) -> dict[str, int]:
    """As transformers will read them."""
    hidden, heads = keys[f"{family}.embedding_length"], keys[f"{family}.attention.head_count"]
    head_dim = {
        "llama": keys.get(f"{family}.rope.dimension_count"), "mistral": keys.get(f"{family}.rope.dimension_count"),
        "gemma3": keys.get(f"{family}.attention.key_length"), "qwen3": _QWEN3_HEAD_DIM,
    }.get(family)  # fmt: skip
    return {
        "vocab_size": keys.get(f"{family}.vocab_size", keys["tokenizer.ggml.tokens"].count),
        "hidden_size": hidden,
        "intermediate_size": keys[f"{family}.feed_forward_length"],
        "num_hidden_layers": keys[f"{family}.block_count"],
        "num_attention_heads": heads,
        "num_key_value_heads": keys.get(f"{family}.attention.head_count_kv", heads),
        "head_dim": head_dim or hidden // heads,
    }
