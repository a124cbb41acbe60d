"""Damaged store records: number n always gives the same damage."""

from __future__ import annotations

import math
import random
import struct
from typing import Any

import xxhash
import zstandard
from payloads import Payload

HEAD = struct.Struct("<4sHBB16s18sHQQ")
"""As documented in `storage/disk/record.py`; written down again so that a change of the format shows."""
FIXED = HEAD.size + 8
EXTREMES = [0, 1, 511, 513, 2**16 - 1, 2**31, 2**32, 2**40, 2**63, 2**64 - 1]


def sealed(head: bytes, body: bytes) -> bytes:
    """A record whose checksum is right, whatever it says."""
    return head + struct.pack("<Q", xxhash.xxh3_64(head + body).intdigest()) + body


def lying(rng: random.Random, whole: bytes) -> bytes:
    """One or two fields of the header are others, and the checksum agrees."""
    fields = list(HEAD.unpack(whole[: HEAD.size]))
    for _ in range(rng.choice([1, 1, 2])):
        which = rng.randrange(len(fields))
        if isinstance(fields[which], bytes):
            fields[which] = rng.randbytes(len(fields[which]))
        else:
            limit = {1: 2**16, 2: 2**8, 3: 2**8, 6: 2**16}.get(which, 2**64)
            fields[which] = rng.choice([*EXTREMES, rng.randrange(8)]) % limit
    return sealed(HEAD.pack(*fields), whole[FIXED:])


def resized(rng: random.Random, whole: bytes) -> bytes:
    """The payload is longer, shorter or other bytes; size and checksum agree with it, the rest does not."""
    fields = list(HEAD.unpack(whole[: HEAD.size]))
    ids = whole[FIXED : FIXED + 4 * fields[6]]
    payload = rng.randbytes(rng.choice([0, 1, 3, 17, 511, 512, 513, 4096]))
    fields[8] = len(payload)
    fields[3] = rng.choice([fields[3], 0, 1, 2, 3, 9])
    return sealed(HEAD.pack(*fields), ids + payload)


def bomb(rng: random.Random, whole: bytes) -> bytes:
    """A zstd frame that would become a gigabyte, lies about its size, or asks for a window of 2 GiB."""
    fields = list(HEAD.unpack(whole[: HEAD.size]))
    ids = whole[FIXED : FIXED + 4 * fields[6]]
    block = struct.pack("<I", 0x1 | 0x2 | (8 << 3))[:3] + b"\0"  # last, run-length, 8 bytes
    frames = [
        zstandard.ZstdCompressor(level=1, write_content_size=declares).compress(bytes(size))
        for declares in (True, False)
        for size in (512, 32 << 20)
    ]
    frames += [
        b"\x28\xb5\x2f\xfd\x00" + bytes([21 << 3]) + block,  # window 2 GiB, no size
        b"\x28\xb5\x2f\xfd\xc0" + bytes([21 << 3]) + struct.pack("<Q", 512) + block,  # ... and the right size
        b"\x28\xb5\x2f\xfd\xe0" + struct.pack("<Q", 1 << 30) + run_of(1 << 30),
        b"\x28\xb5\x2f\xfd\x60" + struct.pack("<H", 512 - 256) + run_of(1 << 30),
        frames[0] * 2,
    ]
    payload = rng.choice(frames)
    fields[3], fields[8] = 1, len(payload)
    fields[7] = rng.choice([fields[7], 512, 1 << 30, len(payload)])
    return sealed(HEAD.pack(*fields), ids + payload)


def run_of(size: int) -> bytes:
    """Blocks of a zstd frame: `size` zeros, 128 KiB in four bytes."""
    whole, rest = divmod(size, 128 << 10)
    assert rest == 0
    piece = struct.pack("<I", 0x2 | ((128 << 10) << 3))[:3] + b"\0"
    return piece * (whole - 1) + struct.pack("<I", 0x1 | 0x2 | ((128 << 10) << 3))[:3] + b"\0"


def truncated(rng: random.Random, whole: bytes) -> bytes:
    return whole[: rng.choice([0, 3, 4, 6, 8, 24, 42, 44, 52, 60, 67, 68, 84, rng.randrange(len(whole))])]


def flipped(rng: random.Random, whole: bytes) -> bytes:
    data = bytearray(whole)
    for _ in range(rng.choice([1, 1, 8])):
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    return bytes(data)


def overwritten(rng: random.Random, whole: bytes) -> bytes:
    at, size = rng.randrange(len(whole)), rng.choice([1, 64, 4096])
    return whole[:at] + rng.randbytes(len(whole[at : at + size])) + whole[at + size :]


def mutated_record(number: int, whole: bytes) -> tuple[str, bytes]:
    """Damage `number` of a record, and its kind."""
    rng = random.Random(number)
    kinds = [flipped, lying, truncated, resized, bomb, overwritten]
    kind = kinds[number % len(kinds)]
    return kind.__name__, kind(rng, whole)


def mutated_bytes(number: int, whole: bytes) -> tuple[str, bytes]:
    """As `mutated_record`, for the first piece of a longer record: only what its checksum must tell."""
    rng = random.Random(number)
    kinds = [flipped, lying, truncated, overwritten]
    kind = kinds[number % len(kinds)]
    return kind.__name__, kind(rng, whole)


VALUES: list[Any] = [
    None, True, "", "x" * 5000, "\x1b[2J\ud800", [], {}, -1, 0, 1, 2, 7, 511, 2**31, 2**40, 2**63, 2**400, 0.5, 1e300,
    float("nan"), float("inf"), [1] * 5000, [[[[]]]], {"a": {"b": None}}, "F32", "U8", "layer.0.tail", [2**40, 2**41],
]  # fmt: skip
"""What a field of a payload's header may become."""


def field_changed(rng: random.Random, payload: Payload) -> bytes:
    """One or two values anywhere in the header are others, or gone, or there twice as often."""
    for _ in range(rng.choice([1, 1, 2])):
        place: Any = rng.choice([payload.layout, payload.metadata, payload.header or payload.metadata])
        while True:
            keys = list(place) if isinstance(place, dict) else list(range(len(place)))
            if not keys:
                break
            key = rng.choice(keys)
            if isinstance(place[key], dict | list) and place[key] and rng.random() < 0.8:
                place = place[key]
                continue
            if rng.random() < 0.15:
                del place[key]
            else:
                place[key] = rng.choice(VALUES)
            break
    return payload.bytes()


def numbers_changed(rng: random.Random, payload: Payload) -> bytes:
    """Bytes of one tensor are others: ids, codes and numbers that no model or index has."""
    name = rng.choice(list(payload.layout))
    start, stop = payload.layout[name]["data_offsets"]
    if stop > start:
        at, size = rng.randrange(start, stop), rng.choice([1, 2, 8, 64, stop - start])
        noise = rng.choice([b"\xff", b"\0", b"\x7f", rng.randbytes(8), struct.pack("<q", 10**9), b"\x00\x00\xc0\x7f"])
        payload.data[at : min(at + size, stop)] = (noise * size)[: min(at + size, stop) - at]
    return payload.bytes()


def tensor_gone(rng: random.Random, payload: Payload) -> bytes:
    payload.drop(rng.choice(list(payload.layout)))
    return payload.bytes()


def tensor_turned(rng: random.Random, payload: Payload) -> bytes:
    """As many numbers in another shape, as another type of the same width, or under another's name."""
    one, two = rng.choice(list(payload.layout)), rng.choice(list(payload.layout))
    entry = payload.layout[one]
    if rng.random() < 0.3:
        payload.layout[one], payload.layout[two] = payload.layout[two], payload.layout[one]
    elif rng.random() < 0.5:
        entry["shape"] = rng.choice([entry["shape"][::-1], [math.prod(entry["shape"])], [1, *entry["shape"]]])
    else:
        entry["dtype"] = rng.choice(["F32", "I32", "I64", "F64", "F16", "BF16", "I16", "U8", "I8", "BOOL", "U64"])
    return payload.bytes()


def file_damaged(rng: random.Random, payload: Payload) -> bytes:
    """The file's own frame: length, nesting, text, end."""
    whole = payload.bytes()
    choice = rng.randrange(5)
    if choice == 0:
        return rng.choice(EXTREMES).to_bytes(8, "little") + whole[8:]
    if choice == 1:
        text = b"[" * rng.choice([100, 100_000]) + b"]" * rng.choice([0, 100])
        return len(text).to_bytes(8, "little") + text
    if choice == 2:
        text = b'{"a":[' + b"[]," * 200_000 + b"0]}"
        return len(text).to_bytes(8, "little") + text
    if choice == 3:
        return truncated(rng, whole)
    return rng.choice([flipped, overwritten])(rng, whole)


def mutated_payload(number: int, whole: bytes) -> tuple[str, bytes]:
    """Damage `number` of a session's or a state's payload, and its kind. Whoever stores it makes the checksum right."""
    rng = random.Random(number)
    kinds = [field_changed, numbers_changed, tensor_turned, file_damaged, field_changed, tensor_gone]
    kind = kinds[number % len(kinds)]
    return kind.__name__, kind(rng, Payload(whole))
