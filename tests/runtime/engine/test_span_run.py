"""A span goes through every layer that keeps something of it, and its last token alone through the others."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from tiny_models import VOCABULARY, save_tiny_model

from stratakv.runtime import KVConfig, Runtime
from stratakv.runtime.layers.tiered import tiered_layers
from stratakv.runtime.model.model import Model

TEXT = np.random.default_rng(0).integers(3, VOCABULARY, 90).astype(np.uint32)


def test_layers_that_share_run_on_the_last_token_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, rows, shares = Model.run_layer, [], []

    def counting(model: Model, module: Any, hidden: Any, *rest: Any, **named: Any) -> Any:
        rows.append(hidden.shape[1])
        shares.append(module.self_attn.shares)
        return run(model, module, hidden, *rest, **named)

    monkeypatch.setattr(Model, "run_layer", counting)
    kv = KVConfig(path=tmp_path / "kv", index="dense", host_gb=0.05, disk_gb=0.1)
    with Runtime.load(save_tiny_model(tmp_path / "model", "gemma4_text-shared"), dtype="float32", kv=kv) as runtime:
        sequence = runtime.engine.new_sequence()
        runtime.engine.prefill(sequence, TEXT[:60], want_logits=False)
        assert not any(shares)
        assert sum(rows) == 4 * 60
        rows.clear()
        shares.clear()
        runtime.engine.prefill(sequence, TEXT[60:])
        assert [count for count, is_shared in zip(rows, shares, strict=True) if is_shared] == [1, 1]
        assert sum(rows) == 4 * 30 + 2


def test_layers_are_told_how_much_they_change(tmp_path: Path) -> None:
    """Beside transformers' hidden states, in chunks and two spans; so is a fork of a sequence that keeps rows."""
    folder = save_tiny_model(tmp_path / "model")
    with torch.inference_mode():
        inner = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).model
        hidden = inner(torch.from_numpy(TEXT.astype(np.int64))[None], output_hidden_states=True).hidden_states
    kv = KVConfig(path=tmp_path / "kv", host_gb=0.05, disk_gb=0.1, placement="squeeze:keep=40")
    with Runtime.load(folder, dtype="float32", kv=kv) as runtime:
        runtime.engine.chunk = 32
        other = runtime.reading(replace(runtime.config, placement=None))
        own, kept = runtime.engine.new_sequence(), other.new_sequence(keep_rows=True)
        for engine, sequence in ((runtime.engine, own), (other, kept)):
            engine.prefill(sequence, TEXT[:70], want_logits=False, reuse=False)
            engine.prefill(sequence, TEXT[70:], want_logits=False, reuse=False)
        for sequence in (own, runtime.engine.fork(kept)):
            layers = tiered_layers(sequence.layers)[:-1]  # transformers norms what the last gives
            for layer, tiered in enumerate(layers):
                assert tiered.placed is not None
                expected = torch.cosine_similarity(hidden[layer], hidden[layer + 1], dim=-1)
                told = tiered.placed.kept.state["cosine"]
                torch.testing.assert_close(told, torch.tensor([expected.sum().item(), len(TEXT)]))
