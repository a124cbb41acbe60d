"""A card holds its weights, a fifth of the rest for what is not planned, what a sequence holds, and pages."""

from __future__ import annotations

from pathlib import Path

from stratakv.runtime.bench.shapes import model_without_weights
from stratakv.runtime.chat.runtime import page_layout
from stratakv.runtime.engine.cards import CARDS_GB, WEIGHTS, on_cards, weights_bytes
from stratakv.runtime.engine.held import held_by
from stratakv.runtime.layers.workspace import Workspace


def test_what_a_card_holds_adds_up(tmp_path: Path) -> None:
    model = model_without_weights("qwen3.8-27b", tmp_path)
    layout = page_layout(model, 16, "bfloat16")
    found = {(one.card_gb, one.weights): one for one in on_cards(model, layout)}
    assert [*found] == [(card, weights) for card in CARDS_GB for weights in WEIGHTS]
    assert {one for one, held in found.items() if held.tokens is not None} == {(16, "int4"), (24, "int4")}
    one = found[24, "int4"]
    assert one.tokens is not None
    used = one.tokens * 65536 + Workspace.bytes_for(layout, 4096) + held_by(model, layout).sequence_bytes
    assert 0 <= 0.8 * (24e9 - one.weights_bytes) - used < 65536 + 1
    assert found[12, "int4"].lacking == "the weights alone are larger"


def test_only_matrices_are_written_in_blocks(tmp_path: Path) -> None:
    model = model_without_weights("smollm2-135m", tmp_path)
    weights = [weight.numel() for weight in model.hf.parameters() if weight.dim() == 2]
    rest = sum(weight.numel() for weight in model.hf.parameters() if weight.dim() == 1)
    assert weights_bytes(model, "bf16") == 2 * (sum(weights) + rest)
    assert weights_bytes(model, "int8") == sum(weights) // 32 * 34 + 2 * rest
    assert weights_bytes(model, "int4") == sum(weights) // 32 * 18 + 2 * rest


def test_a_card_on_which_little_is_left_says_what_is_needed(tmp_path: Path) -> None:
    """Of weights that leave 1.4 GB of 24, and 1.7 GB of windows."""
    model = model_without_weights("gemma4-31b", tmp_path)
    sizes = {one.card_gb: one for one in on_cards(model, page_layout(model, 256, "float32")) if one.weights == "int4"}
    assert sizes[24].tokens is not None
    assert sizes[16].lacking == "the weights alone are larger"
