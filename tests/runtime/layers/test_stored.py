"""What was stored of a layer is looked at before anything works with it, and what is wrong is named."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import safetensors.torch
import torch
from kv_pages import SMALL, disk_tier
from torch import Tensor

from stratakv.retrieval.params import IndexParams
from stratakv.retrieval.registry import make_index
from stratakv.retrieval.stored import Geometry
from stratakv.runtime.layers.sliding import SlidingLayer
from stratakv.runtime.layers.stored import (
    check_kv,
    check_window,
    is_sound_state,
    read_tensors,
    stored_state,
    tensors_under,
)
from stratakv.storage import DiskTier, LaterVersionError, RecordError

CHAIN = bytes(range(16))


def kv(count: int) -> Tensor:
    return torch.ones(2, SMALL.num_heads, count, SMALL.head_dim)


def with_nan() -> Tensor:
    found = kv(3)
    found[1, 0, 2, 5] = torch.nan
    return found


def test_tensors_and_what_is_said_about_them() -> None:
    payload = safetensors.torch.save({"a": kv(2), "b.c": torch.arange(3)}, {"index": "bounds"})
    tensors, metadata = read_tensors(payload)
    assert tensors.keys() == {"a", "b.c"}
    assert torch.equal(tensors["b.c"], torch.arange(3))
    assert metadata == {"index": "bounds"}
    for broken, said in (
        (payload[:-1], "data: 279 bytes"),
        (payload + b"\0", "data: 281 bytes"),
        (payload[8:], "header"),
    ):
        with pytest.raises(RecordError, match=f"^{said}"):
            read_tensors(broken)


def test_names_go_on_behind_a_prefix() -> None:
    found = tensors_under("1.", {"1.a": kv(1), "11.b": kv(2), "1": kv(3), "1.c.d": kv(4)})
    assert {name: tensor.shape[2] for name, tensor in found.items()} == {"a": 1, "c.d": 4}


@pytest.mark.parametrize(
    ("found", "said"),
    [
        (None, "nothing, expected torch.float32"),
        (kv(2), r"torch.float32 \(2, 2, 2, 8\), expected torch.float32 \(2, 2, 3, 8\)"),
        (kv(3).half(), "torch.float16 .*, expected torch.float32"),
        (kv(3).transpose(2, 3), r"torch.float32 \(2, 2, 8, 3\), expected"),
        (with_nan(), "has a value that is not finite"),
    ],
)
def test_keys_and_values_of_another_kind_are_refused(found: Tensor | None, said: str) -> None:
    check_kv("tail", kv(3), 3, SMALL, torch.float32)
    with pytest.raises(RecordError, match=f"^tail: {said}"):
        check_kv("tail", found, 3, SMALL, torch.float32)


def test_keys_that_contain_the_values_have_one_side() -> None:
    latent = replace(SMALL, value_dim=6)
    check_kv("tail", kv(3)[:1], 3, latent, torch.float32)
    for found, layout in ((kv(3), latent), (kv(3)[:1], SMALL)):
        with pytest.raises(RecordError, match=r"^tail: torch\.float32"):
            check_kv("tail", found, 3, layout, torch.float32)


@pytest.mark.parametrize(("num_tokens", "held"), [(100, range(5, 10)), (7, range(5, 8)), (2, range(2, 3))])
def test_a_window_holds_what_it_needs_and_at_most_what_it_keeps(num_tokens: int, held: range) -> None:
    """Of a text that is shorter, all of it."""
    for count in range(12):
        if count in held:
            check_window("w", kv(count), 6, 9, num_tokens, SMALL, torch.float32)
            continue
        with pytest.raises(RecordError, match=f"w: of {count} tokens, not what a window of 6 holds after {num_tokens}"):
            check_window("w", kv(count), 6, 9, num_tokens, SMALL, torch.float32)


def test_an_unsound_state_of_an_index_is_told(caplog: pytest.LogCaptureFixture) -> None:
    index = make_index("bounds", IndexParams(page_size=SMALL.page_size))
    of = Geometry(kv(0)[0], 8, 3)
    assert is_sound_state(index, 4, {"bounds": torch.zeros(2, 2, 16)}, of)
    assert not caplog.records
    assert not is_sound_state(index, 4, {"bounds": torch.zeros(2, 3, 16)}, of)
    (record,) = caplog.records
    assert record.message.startswith("layer 4: the index's state is not used, it is built again: 'bounds'")


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[DiskTier]:
    disk = disk_tier(tmp_path / "s")
    yield disk
    disk.close()


def sliding(layer: int) -> SlidingLayer:
    return SlidingLayer(layer, 6, SMALL, torch.float32, torch.device("cpu"))


def test_a_state_is_read_if_every_layer_can_go_on_from_it(disk: DiskTier, caplog: pytest.LogCaptureFixture) -> None:
    assert stored_state(None, CHAIN, [], 8) is None
    assert stored_state(disk, CHAIN, [], 8) is None
    disk.put_state(CHAIN, safetensors.torch.save({"1": kv(8)}, {"index": "bounds"}))
    found = stored_state(disk, CHAIN, [sliding(1)], 8)
    assert found is not None
    assert torch.equal(found[0]["1"], kv(8))
    assert found[1] == "bounds"
    assert not caplog.records
    assert stored_state(disk, CHAIN, [sliding(1), sliding(2)], 8) is None
    assert caplog.records.pop().message == (
        f"state {CHAIN.hex()} is damaged (layer 2: of 0 tokens, not what a window of 6 holds after 8): not used"
    )


def test_a_later_versions_state_is_no_damage(
    disk: DiskTier, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def later(chain: bytes) -> bytes:
        raise LaterVersionError("version 9")

    monkeypatch.setattr(disk, "get_state", later)
    with caplog.at_level(logging.INFO, "stratakv"):
        assert stored_state(disk, CHAIN, [], 8) is None
    assert [(record.levelname, "later version" in record.message) for record in caplog.records] == [("INFO", True)]
