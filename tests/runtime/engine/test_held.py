"""What a sequence is planned to hold beside its pages is what its layers refer to."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tiny_models import save_tiny_model
from torch import Tensor

from stratakv.runtime import DoesNotFitError, KVConfig, Runtime
from stratakv.runtime.bench.shapes import model_without_weights
from stratakv.runtime.chat.runtime import page_layout
from stratakv.runtime.engine.batch import check_open_pages
from stratakv.runtime.engine.held import Held, held_by
from stratakv.runtime.engine.sequence import Sequence


def tensors(found: object) -> dict[int, Tensor]:
    """All that are in it, each once."""
    if isinstance(found, Tensor):
        return {found.data_ptr(): found}
    parts = found.values() if isinstance(found, dict) else found if isinstance(found, tuple | list) else ()
    return {at: tensor for part in parts for at, tensor in tensors(part).items()}


def held(sequence: Sequence) -> int:
    every = tensors([vars(layer) for layer in sequence.layers if not layer.is_paged])
    return sum(tensor.nbytes for tensor in every.values())


@pytest.mark.parametrize(("family", "parts"), [("gemma4_text", "windows"), ("qwen3_5_text", "3 states")])
def test_a_sequence_holds_what_is_planned(family: str, parts: str, tmp_path: Path) -> None:
    """A text that ended within a page and went on for two steps: the states of three moments are held."""
    kv = KVConfig(path=tmp_path / "kv", host_gb=0.05, disk_gb=0)
    with Runtime.load(save_tiny_model(tmp_path / "model", family), device="cpu", dtype="bfloat16", kv=kv) as runtime:
        plan, sequence = runtime.plan, runtime.engine.new_sequence()
        runtime.engine.prefill(sequence, np.arange(4, 4 + kv.page_size + 3, dtype=np.uint32))
        for token in (7, 8):
            runtime.engine.decode([sequence], [token])
        assert held(sequence) == plan.held.sequence_bytes > 0
        assert plan.held.named == parts
        left = [layer.leave(sequence.tail_len, kv.page_size) for layer in sequence.layers if not layer.is_paged]
        assert sum(tensor.nbytes for each in left for tensor in each.values()) <= plan.held.left_bytes
        assert runtime.store.host.reserved_bytes == plan.workspace_bytes + plan.held.sequence_bytes
        large = replace(plan, held=replace_bytes(plan.held, 10**15))
        check_open_pages(large, runtime.store, 1)
        with pytest.raises(DoesNotFitError, match=rf"2 prompts hold {parts} of \d.\d\de\+10 GB each, and .* are free"):
            check_open_pages(large, runtime.store, 2)
        sequence.close()


def replace_bytes(one: Held, times: int) -> Held:
    return Held(one.state_bytes * times, one.window_bytes * times)


def test_a_model_of_tiered_layers_alone_holds_nothing_else() -> None:
    assert (Held().sequence_bytes, Held().named) == (0, "")
    assert (Held(10, 6).sequence_bytes, Held(10, 6).left_bytes) == (36, 13)
    assert Held(10, 6).named == "3 states and windows"


def test_a_large_hybrid_and_a_large_model_of_windows_hold_what_their_sizes_say(tmp_path: Path) -> None:
    """Of published sizes: 48 delta nets of 48 heads of 128 by 128, and 3 columns of 10,240; windows of 1,024 in 50
    layers of 16 heads of 256, and a page."""
    delta, sliding = (model_without_weights(name, tmp_path) for name in ("qwen3.8-27b", "gemma4-31b"))
    state = 48 * 4 * (48 * 128 * 128 + 3 * 10240)
    assert held_by(delta, page_layout(delta, 16, "bfloat16")) == Held(state_bytes=state)
    left = 50 * 2 * 16 * 256 * 2 * (1023 + 16)
    assert held_by(sliding, page_layout(sliding, 16, "bfloat16")) == Held(window_bytes=2 * left)
