"""A card holds its weights, a fifth of the rest for what is not planned, what a sequence holds, and pages."""

from __future__ import annotations

from pathlib import Path

from stratakv.runtime.bench.shapes import model_without_weights
from stratakv.runtime.chat.runtime import page_layout
from stratakv.runtime.engine.cards import CARDS_GB, WEIGHTS, on_cards, weights_bytes
from stratakv.runtime.engine.held import held_by
from stratakv.runtime.layers.workspace import Workspace
from stratakv.runtime.model.packing import GROUP, packed_names


def test_what_a_card_holds_adds_up(tmp_path: Path) -> None:
    model = model_without_weights("qwen3.8-27b", tmp_path)
    layout = page_layout(model, 16, "bfloat16")
    found = {(one.card_gb, one.weights): one for one in on_cards(model, layout)}
    assert [*found] == [(card, weights) for card in CARDS_GB for weights in WEIGHTS]
    assert {one for one, held in found.items() if held.tokens is not None} == {(24, "int4")}
    one = found[24, "int4"]
    assert one.tokens is not None
    used = one.tokens * 65536 + Workspace.bytes_for(layout, 4096, 35) + held_by(model, layout).sequence_bytes
    assert 0 <= 0.8 * (24e9 - one.weights_bytes) - used < 65536 + 1
    assert found[12, "int4"].lacking == "the weights alone are larger"


def test_the_matrices_of_layers_are_rounded(tmp_path: Path) -> None:
    decoder = model_without_weights("smollm2-135m", tmp_path).hf
    rounded = [decoder.get_parameter(name).shape for name in packed_names(decoder)]
    count, rows = sum(shape.numel() for shape in rounded), sum(shape[0] for shape in rounded)
    rest = 2 * (sum(weight.numel() for weight in decoder.parameters()) - count)
    assert weights_bytes(decoder, "bf16") == 2 * count + rest
    assert weights_bytes(decoder, "int8") == count + 2 * rows + rest
    assert weights_bytes(decoder, "int4") == count // 2 + 4 * count // GROUP + rest


def test_weights_that_cannot_be_rounded_so_are_told(tmp_path: Path) -> None:
    model = model_without_weights("tiny", tmp_path)
    found = {one.weights: one for one in on_cards(model, page_layout(model, 16, "bfloat16")) if one.card_gb == 12}
    assert found["int4"].tokens is None
    assert found["int4"].lacking.startswith("weights=int4 needs rows in multiples of 8 and columns in multiples of 32")
    assert found["int8"].tokens is not None


def test_a_card_on_which_little_is_left_says_what_is_needed(tmp_path: Path) -> None:
    """Of weights that leave 2.9 GB of 24, and 2.1 GB of windows."""
    model = model_without_weights("gemma4-31b", tmp_path)
    sizes = {one.card_gb: one for one in on_cards(model, page_layout(model, 256, "float32")) if one.weights == "int4"}
    assert sizes[24].lacking.startswith("device cap 2.3 GB is too small: 0.0797 GB workspace + 2.1 GB windows + ")
    assert sizes[16].lacking == "the weights alone are larger"
