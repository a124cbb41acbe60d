"""How much heads look back at random tokens that come again, beside transformers' own attention."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import transformers
from tiny_models import save_tiny_model

from stratakv.runtime.engine import search_heads
from stratakv.runtime.engine.search_heads import looks_back, repeated_tokens, search_scores
from stratakv.runtime.model.model import Model

LENGTH = 20


def test_scores_are_sums_of_attention(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search_heads, "LENGTH", LENGTH)
    folder = save_tiny_model(tmp_path)
    model = Model.load(folder, torch.device("cpu"), torch.float32)
    tokens, length = repeated_tokens(model)
    first = len(tokens) - 4 * LENGTH
    assert length == LENGTH
    assert tokens[first : first + LENGTH].tolist() == tokens[-LENGTH:].tolist()
    theirs = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager"
    )  # fmt: skip
    with torch.inference_mode():
        weights = theirs(torch.from_numpy(tokens)[None], output_attentions=True).attentions
    found = search_scores(model)
    assert search_scores(model) is found
    for layer, own in found.items():
        for behind in (0, 1):
            total = torch.zeros(6)
            for row in range(first + LENGTH, len(tokens)):
                for before in range(row - LENGTH, first - 1, -LENGTH):
                    total += weights[layer][0, :, row, before + behind]
            best = (total / (3 * LENGTH)).view(2, 3).max(1).values
            torch.testing.assert_close(own[behind], best, rtol=1e-4, atol=1e-5)


def test_a_head_made_for_it_is_found() -> None:
    """Keys say which token they are; one head asks for its own, the other for the one behind it."""
    words = torch.eye(LENGTH).repeat(4, 1) * 40
    keys = torch.stack([words, words])
    queries = torch.stack([words, words.roll(-1, 0)])
    echo, induction = looks_back(queries, keys, 1.0, LENGTH)
    assert echo[0] > 0.5 > echo[1]
    assert induction[1] > 0.5 > induction[0]
    quiet = looks_back(queries, keys, 1.0, LENGTH, torch.tensor([5000.0, 5000.0]))
    assert quiet.max() < 1e-3, "learned sinks take all of it"
