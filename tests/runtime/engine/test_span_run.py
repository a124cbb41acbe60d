"""A span goes through every layer that keeps something of it, and its last token alone through the others."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_models import VOCABULARY, save_tiny_model

from stratakv.runtime import KVConfig, Runtime
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
