"""What a file says of its architecture is checked as it is asked for, and what nobody asked for is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from stratakv.runtime.api.errors import ModelFileError
from stratakv.runtime.model.gguf.container import Contents
from stratakv.runtime.model.gguf.said import Said


def said(**keys: Any) -> Said:
    named: Any = {f"llama.{name}": value for name, value in keys.items()} | {"general.name": "tiny"}
    return Said(Contents(Path("a.gguf"), named, {}, 0, 0, 1), "llama")


def test_a_value_is_the_files_or_the_default() -> None:
    found = said(heads=4, theta=5, kind="yarn")
    assert (found.whole("heads"), found.whole("heads", default=9), found.whole("layers", default=9)) == (4, 4, 9)
    assert (found.number("theta"), found.number("scale", 0.5)) == (5.0, 0.5)
    assert (found.text("kind", "none"), found.text("type", "none")) == ("yarn", "none")
    assert (found.value("other"), found.has("heads"), found.has("name")) == (None, True, False)


def test_a_list_that_says_the_same_for_every_layer_is_that_number() -> None:
    found = said(block_count=3, heads=[4, 4, 4], theta=[0.5, 0.5, 0.5])
    assert (found.whole("heads"), found.number("theta")) == (4, 0.5)


def test_a_number_by_layer_is_the_list_or_the_one_of_all() -> None:
    found = said(block_count=3, heads=[4, 0, 2], width=8)
    assert found.by_layer("heads", "num_attention_heads") == [4, 0, 2]
    assert (found.by_layer("width"), found.by_layer("other", default=1)) == ([8] * 3, [1] * 3)


@pytest.mark.parametrize(
    ("keys", "ask", "problem"),
    [
        ({"heads": [4, -1], "block_count": 2}, ("by_layer", "heads"),
         r"llama.heads: \[4, -1\], expected whole numbers from 0"),
        ({"heads": [4, 1025], "block_count": 2}, ("by_layer", "heads", "num_attention_heads"),
         "llama.heads: 1025, expected a whole number from 1 to 1024"),
        ({"heads": [4], "block_count": 2}, ("by_layer", "heads"),
         r"llama.heads: \[4\], 1 numbers, llama.block_count is 2"),
        ({}, ("whole", "heads"), "not a readable GGUF model: llama.heads: the file does not say it"),
        ({"heads": -1}, ("whole", "heads"), "llama.heads: -1, expected a whole number from 0"),
        ({"heads": True}, ("whole", "heads"), "llama.heads: True, expected a whole number from 0"),
        ({"heads": 4.0}, ("whole", "heads"), "llama.heads: 4.0, expected a whole number from 0"),
        ({"heads": 1025}, ("whole", "heads", "num_attention_heads"),
         "llama.heads: 1025, expected a whole number from 1 to 1024"),
        ({"theta": float("inf")}, ("number", "theta"), "llama.theta: inf, expected a finite number"),
        ({"theta": True}, ("number", "theta"), "llama.theta: True, expected a finite number"),
        ({"kind": 7}, ("text", "kind", "none"), "llama.kind: 7, expected a text"),
        ({"heads": [4, 2], "block_count": 2}, ("whole", "heads"),
         r"llama.heads: \[4, 2\] is not supported: its layers have sizes of their own; take a model whose layers"),
        ({"heads": [4, 4], "block_count": 3}, ("whole", "heads"),
         r"llama.heads: \[4, 4\], 2 numbers for 3 layers"),
    ],
    ids=str,
)  # fmt: skip
def test_what_no_model_says_is_an_error_that_names_the_key(
    keys: dict[str, Any], ask: tuple[str, ...], problem: str
) -> None:
    with pytest.raises(ModelFileError, match=f"^a.gguf: {problem}"):
        getattr(said(**keys), ask[0])(*ask[1:])


def test_what_nobody_asked_for_is_refused() -> None:
    """Keys of others are not the architecture's to say; those that are known to change nothing may stand there."""
    found = said(heads=4, pooling=1, cap=30.0)
    found.whole("heads")
    with pytest.raises(ModelFileError, match=r"a.gguf: llama.cap: 30.0 is not supported: what it asks of a llama"):
        found.refuse_rest({"pooling": "changes no next token"})
    found.value("cap")
    found.refuse_rest({"pooling": "changes no next token"})
