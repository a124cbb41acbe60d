"""A header is believed only where all it says can be in a file of that size; its tensors lie where it says."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import numpy as np
import pytest
from gguf_contents import contents_of
from gguf_models import tokenizer_keys, write_raw
from tiny_gguf import key

from stratakv.runtime.api.errors import ModelFileError
from stratakv.runtime.model.gguf import container
from stratakv.runtime.model.gguf.container import read_gguf

U32, F32, BOOL, STRING, ARRAY, U64 = 4, 6, 7, 8, 9, 10
"""Types of values."""


def u32(name: str, value: int) -> bytes:
    return key(name, U32, struct.pack("<I", value))


def array(name: str, kind: int, count: int, items: bytes = b"") -> bytes:
    return key(name, ARRAY, struct.pack("<IQ", kind, count) + items)


def tensor(name: str, *dims: int, kind: int = 0, offset: int = 0) -> bytes:
    said = struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, kind, offset)
    return struct.pack("<Q", len(name)) + name.encode() + said


def whole(
    keys: list[bytes], tensors: list[bytes], data: int = 0, *, align: int = 32, num_keys: int | None = None,
    num_tensors: int | None = None,
) -> bytes:  # fmt: skip
    """A file with `data` bytes of numbers."""
    counts = len(tensors) if num_tensors is None else num_tensors, len(keys) if num_keys is None else num_keys
    header = b"GGUF" + struct.pack("<IQQ", 3, *counts) + b"".join([*keys, *tensors])
    return header + bytes(-len(header) % align + data)


def test_tensors_lie_behind_the_header_at_a_multiple_of_the_alignment(tmp_path: Path) -> None:
    keys = [u32("general.alignment", 64), key("a.flag", BOOL, b"\1")]
    tensors = [tensor("two", 8, offset=128), tensor("one", 4, 6, kind=1, offset=64)]
    path = tmp_path / "m.gguf"
    path.write_bytes(whole(keys, tensors, 160, align=64))
    found = read_gguf([path])
    assert dict(found.keys) == {"general.alignment": 64, "a.flag": True}
    start = -(-found.header_bytes // 64) * 64
    assert start == path.stat().st_size - 160
    one, two = found.tensors["one"], found.tensors["two"]
    assert (one.shape, one.kind, one.start, one.num_bytes) == ((6, 4), 1, start + 64, 48)
    assert (two.shape, two.kind, two.start, two.num_bytes) == ((8,), 0, start + 128, 32)


ONE = tensor("a", 8)
SCORES, TOKENS = "tokenizer.ggml.scores", "tokenizer.ggml.tokens"
IMPOSSIBLE: dict[str, tuple[bytes, str]] = {
    "tensors": (whole([], [], 64, num_tensors=1 << 60), "tensor count: 1152921504606846976, at most 2 are possible"),
    "keys": (whole([], [], 64, num_keys=1 << 60), "key count: 1152921504606846976, at most 5 are possible"),
    "items": (whole([array("a", U64, 1 << 40)], []), "key 'a': 1099511627776, at most 1 are possible"),
    "texts": (
        whole([array("a", STRING, 2, struct.pack("<QQ", 40, 40))], []),
        "key 'a': the file ends at byte 96, inside",
    ),
    "a long text": (whole([key("a", STRING, struct.pack("<Q", 1 << 21))], []), "a string of 2097152 bytes, at most"),
    "a text beyond the end": (whole([key("a", STRING, struct.pack("<Q", 99))], []), "99 bytes long, the file has"),
    "half a number": (whole([key("a", U64, bytes(4))], [], align=1), "key 'a': the file ends at byte 41, inside"),
    "a long text in a list": (
        whole([array("a", STRING, 1, struct.pack("<Q", 1 << 21))], []),
        "key 'a': a string of 2097152 bytes, at most",
    ),
    "a name of no letters": (
        whole([key("a", BOOL, b"\1").replace(b"a", b"\xff")], []),
        r"key 0: b'\\xff' is not UTF-8",
    ),
    "a name twice": (whole([u32("a", 1), u32("a", 2)], []), "key 'a': it is there twice"),
    "no name": (whole([u32("", 1)], []), "key 0: it is empty"),
    "a type": (whole([key("a", 77, b"")], []), "key 'a': a value of the unknown type 77"),
    "a truth": (whole([key("a", BOOL, b"\2")], []), "key 'a': 2, a truth value is 0 or 1"),
    "arrays in one": (whole([array("a", ARRAY, 1)], []), "key 'a': an array of arrays"),
    "unknown items": (whole([array("a", 77, 1)], []), "key 'a': items of the unknown type 77"),
    "scores of another type": (whole([array(SCORES, U32, 0)], []), f"key '{SCORES}': items of type 4, expected 6"),
    "one score for all": (whole([key(SCORES, F32, bytes(4))], []), f"{SCORES}: 0.0, expected an array"),
    "fewer scores": (
        whole([array(TOKENS, STRING, 2, bytes(16)), array(SCORES, F32, 1, bytes(4))], []),
        "1 items for 2 tokens",
    ),
    "a tensor twice": (whole([], [ONE, ONE], 64), "tensor 'a': it is there twice"),
    "five dimensions": (whole([], [tensor("a", *[1] * 5)], 32), "tensor 'a': 5 dimensions, expected 1 to 4"),
    "nothing in it": (whole([], [tensor("a", 8, 0)], 32), r"tensor 'a': its shape is \[8, 0\]"),
    "more than can be counted": (whole([], [tensor("a", 1 << 32, 1 << 31)], 32), "tensor 'a': its shape is"),
    "half a block": (whole([], [tensor("a", 48, kind=8)], 64), "rows of 48 numbers, its type packs 32 at a time"),
    "between two": (whole([], [tensor("a", 8, offset=16)], 64), "offset 16 is no multiple of the alignment 32"),
    "over each other": (
        whole([], [tensor("a", 16), tensor("b", 8, offset=32)], 64),
        "tensor 'b': offset 32 is inside the tensor before, which ends at 64",
    ),
    "beyond the end": (whole([], [ONE], 31), "tensor 'a': it ends at byte 96, the file at 95"),
    "alignment": (whole([u32("general.alignment", 48)], [ONE], 64), "general.alignment: 48, expected a power of two"),
    "part": (whole([u32("split.no", 2), u32("split.count", 2)], []), "split.no: 2, expected a number below 2"),
    "parts": (whole([u32("split.count", 1025)], []), "split.count: 1025, expected a number up to 1024"),
}


@pytest.mark.parametrize("case", IMPOSSIBLE)
def test_what_cannot_be_is_refused_by_its_field(case: str, tmp_path: Path) -> None:
    data, said = IMPOSSIBLE[case]
    path = tmp_path / "m.gguf"
    path.write_bytes(data)
    with pytest.raises(ModelFileError, match=said) as refused:
        read_gguf([path])
    assert str(refused.value).startswith(f"{path}: not a readable GGUF model: ")


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"GGUF", "header: 4 bytes, it has 24; is it complete"),
        (b"PK\3\4" + bytes(20), r"magic: b'PK\\x03\\x04', expected b'GGUF'"),
        (b"version https://git-lfs.github.com/spec/v1\n", "no GGUF model but a pointer to one, as Git leaves it"),
        (b"tjgg" + bytes(20), "no GGUF model but a file of a format before GGUF"),
        (b"GGUF" + struct.pack(">I", 3) + bytes(16), "its numbers are big-endian, which is not supported"),
        (b"GGUF" + struct.pack("<I", 1) + bytes(16), "it is of GGUF's version 1, which is not supported"),
    ],
    ids=["short", "zip", "pointer", "before", "big-endian", "version 1"],
)
def test_what_is_no_such_file_is_named(data: bytes, said: str, tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(data)
    with pytest.raises(ModelFileError, match=said):
        read_gguf([path])


def test_all_parts_of_a_split_are_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parts = [tmp_path / name for name in "abc"]
    for number, part in enumerate(parts):
        part.write_bytes(whole([u32("split.no", number), u32("split.count", 3)], [tensor(part.name, 8)], 32))
    assert read_gguf(parts[::-1]).tensors.keys() == {"a", "b", "c"}
    with pytest.raises(ModelFileError, match=r"a: part 1, 3 of the 3 parts of a split model; put all parts into one"):
        read_gguf([parts[2], parts[0]])
    monkeypatch.setattr(container, "MAX_TENSORS", 2)
    with pytest.raises(ModelFileError, match=r"a: 3 tensors in all parts, at most 2 are allowed"):
        read_gguf(parts)


def test_parts_of_two_splits_do_not_go_together(tmp_path: Path) -> None:
    for name, number, count in (("a", 0, 2), ("b", 1, 3), ("c", 0, 0)):
        (tmp_path / name).write_bytes(whole([u32("split.no", number), u32("split.count", count)], []))
    with pytest.raises(ModelFileError, match=r"b: part 2 of 3, but a is part 1 of 2; put parts of one split together"):
        read_gguf([tmp_path / "b", tmp_path / "a"])
    with pytest.raises(ModelFileError, match="c: a whole model, but a is part 1 of 2"):
        read_gguf([tmp_path / "c", tmp_path / "a"])


def test_no_tensor_is_in_two_parts(tmp_path: Path) -> None:
    one = [("odd", np.zeros((1, 8), np.float32))]
    parts = [write_raw(tmp_path / f"{at}.gguf", "llama", {"split.no": at, "split.count": 2}, one)[0] for at in range(2)]
    with pytest.raises(ModelFileError, match=r"1\.gguf: tensor 'odd' is in another part as well"):
        read_gguf(parts)


def test_the_vocabulary_is_read_as_plain_values() -> None:
    keys = contents_of("llama").keys
    assert {name: keys[name] for name in tokenizer_keys()} == tokenizer_keys()
    assert json.loads(json.dumps(dict(keys))) == dict(keys)
