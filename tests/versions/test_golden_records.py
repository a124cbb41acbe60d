"""Records committed as files: bytes that some version wrote must be read by every later one.

`PYTHONPATH=tests/support python tests/versions/test_golden_records.py` writes files for kinds and codecs that have
none; it replaces none.
"""

from __future__ import annotations

import json

import numpy as np
import pytest
import safetensors.torch
import torch
from codecs_under_test import PROFILE
from places import DATA

from stratakv.storage import ROOT, PageLayout, next_chain, page_key
from stratakv.storage.codecs import CODECS, LOSSLESS, make_codec
from stratakv.storage.disk import record

FOLDER = DATA / "records"
FINGERPRINT = bytes.fromhex("00112233445566778899aabbccddeeff")
LAYOUT = PageLayout(num_heads=2, page_size=16, head_dim=8, dtype="bfloat16")
TOKENS = np.arange(16, dtype=np.uint32) * 3001
CHAIN = next_chain(ROOT, TOKENS)
KEY = page_key(5, CHAIN)
NUMBERS = ((torch.arange(LAYOUT.page_bytes // 2) * 37) % 101 - 50) / 8
"""Each is a bf16 number."""
PAGE = NUMBERS.to(torch.bfloat16).view(torch.uint8).numpy()
HEADER = {"version": 1, "index": "bounds", "num_pages": 1, "notes": {"system": None}}


def tensors() -> dict[str, torch.Tensor]:
    """Of a session of 18 tokens and one layer: a page and a tail of two."""
    tail = NUMBERS[:64].to(torch.bfloat16).reshape(2, 2, 2, 8)
    return {
        "tokens": torch.from_numpy(np.append(TOKENS, [7, 9]).astype(np.int64)),
        "origins": torch.arange(18, dtype=torch.uint8) % 2,
        "chains": torch.frombuffer(bytearray(CHAIN), dtype=torch.uint8),
        "layer.0.tail": tail,
        "layer.0.index.bounds": NUMBERS[:32].reshape(2, 1, 16),
    }


def state_tensors() -> dict[str, torch.Tensor]:
    return {"0.centre": NUMBERS[:16].reshape(2, 8)}


def written(name: str) -> bytes:
    """What this version writes."""
    if name == "session":
        payload = safetensors.torch.save(tensors(), {"stratakv": json.dumps(HEADER)})
        return record.pack(record.SESSION, FINGERPRINT, b"", payload)
    if name == "state":
        payload = safetensors.torch.save(state_tensors(), {"index": "spectral"})
        return record.pack(record.STATE, FINGERPRINT, CHAIN, payload)
    codec = make_codec(name.removeprefix("page-"), LAYOUT, PROFILE)
    payload = codec.encode(PAGE)
    return record.pack(record.PAGE, FINGERPRINT, KEY, payload, codec=codec.code, raw_bytes=PAGE.nbytes, tokens=TOKENS)


def decoded(name: str, buffer: bytes) -> np.ndarray:
    found = record.unpack(buffer, record.PAGE, FINGERPRINT, KEY)
    assert bytes(found.ids) == TOKENS.astype("<u4").tobytes()
    codec, out = make_codec(name, LAYOUT), np.full(found.raw_bytes, 0xAA, dtype=np.uint8)
    assert found.codec == codec.code
    codec.decode(found.payload, out)
    return out


NAMES = [*(f"page-{codec}" for codec in CODECS), "session", "state"]


def test_every_kind_and_codec_has_a_file() -> None:
    assert sorted(path.name for path in FOLDER.glob("*.record")) == sorted(f"{name}.record" for name in NAMES)


@pytest.mark.parametrize("codec", [codec for codec in CODECS if codec != "zstd"])
def test_the_same_page_is_the_same_bytes_today(codec: str) -> None:
    """But for zstd, whose releases compress differently."""
    assert written(f"page-{codec}") == (FOLDER / f"page-{codec}.record").read_bytes()


@pytest.mark.parametrize("name", LOSSLESS)
def test_lossless_pages_decode_to_what_was_put(name: str) -> None:
    np.testing.assert_array_equal(decoded(name, (FOLDER / f"page-{name}.record").read_bytes()), PAGE)


@pytest.mark.parametrize("name", sorted(set(CODECS) - set(LOSSLESS)))
def test_lossy_pages_decode_to_the_very_bits_they_did(name: str) -> None:
    expected = np.fromfile(FOLDER / f"page-{name}.decoded", dtype=np.uint8)
    np.testing.assert_array_equal(decoded(name, (FOLDER / f"page-{name}.record").read_bytes()), expected)
    assert (expected != PAGE).any()


def test_a_session_is_a_safetensors_file() -> None:
    stored = (FOLDER / "session.record").read_bytes()
    payload = bytes(record.unpack(stored, record.SESSION, FINGERPRINT, b"").payload)
    assert record.pack(record.SESSION, FINGERPRINT, b"", payload) == stored
    length = int.from_bytes(payload[:8], "little")
    assert json.loads(json.loads(payload[8 : 8 + length])["__metadata__"]["stratakv"]) == HEADER
    _equal(safetensors.torch.load(payload), tensors())


def test_a_state_is_a_safetensors_file() -> None:
    stored = (FOLDER / "state.record").read_bytes()
    payload = bytes(record.unpack(stored, record.STATE, FINGERPRINT, CHAIN).payload)
    assert record.pack(record.STATE, FINGERPRINT, CHAIN, payload) == stored
    length = int.from_bytes(payload[:8], "little")
    assert json.loads(payload[8 : 8 + length])["__metadata__"] == {"index": "spectral"}
    _equal(safetensors.torch.load(payload), state_tensors())


def _equal(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name


def write_missing() -> None:
    for name in NAMES:
        path = FOLDER / f"{name}.record"
        if not path.exists():
            path.write_bytes(written(name))
            if name.removeprefix("page-") in set(CODECS) - set(LOSSLESS):
                decoded(name.removeprefix("page-"), written(name)).tofile(path.with_suffix(".decoded"))


if __name__ == "__main__":
    write_missing()
