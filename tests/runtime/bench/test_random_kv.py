"""A context of random KV is in the store, the index and the sequence as one that was read."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from bench_runs import TINY, silent

from stratakv.runtime.bench.options import BenchOptions, Caps
from stratakv.runtime.bench.random_kv import fill_cache, fill_sequence
from stratakv.runtime.bench.subject import Subject
from stratakv.runtime.layers import tiered
from stratakv.runtime.layers.sliding import SlidingLayer


def test_random_kv_is_in_store_and_index(tmp_path: Path) -> None:
    """Pages, index and tail are as long as after a prefill; what is read is what was drawn."""
    options = BenchOptions(**TINY, random_kv=True)
    subject = Subject.load(options, tmp_path, 1000, silent)
    with subject.runtime(options.kv(tmp_path / "kv", "spectral", Caps(host_gb=0.05))) as runtime:
        engine = runtime.engine
        prefilled, filled = engine.new_sequence(), engine.new_sequence()
        tokens = subject.tokens(0, 700)
        engine.prefill(prefilled, tokens[::-1].copy(), reuse=False)
        fill_sequence(engine, filled, tokens, seed=3)
        for one, other in zip(prefilled.layers, filled.layers, strict=True):
            assert isinstance(one, tiered.TieredLayer)
            assert isinstance(other, tiered.TieredLayer)
            assert (len(one.pids), one.tail_len, one.indexed) == (len(other.pids), other.tail_len, other.indexed)
            keys, values = other.reader.block(0, other.sealed)
            assert one.state.num_queried == other.state.num_queried == 700 // 16
            assert abs(float(keys.mean())) < 0.05
            assert abs(float(values.std()) - 1) < 0.05
        logits = engine.decode([filled], [1])
        assert torch.isfinite(logits).all()
        runtime.store.check_integrity()


def test_a_layer_whose_state_is_in_no_store_is_refused(tmp_path: Path) -> None:
    options = BenchOptions(**TINY)
    subject = Subject.load(options, tmp_path, 1000, silent)
    with subject.runtime(options.kv(tmp_path / "kv", "bounds", Caps(host_gb=0.05))) as runtime:
        sequence = runtime.engine.new_sequence()
        sequence.layers[1] = SlidingLayer(1, 40, runtime.store.layout, torch.float32, torch.device("cpu"))
        with pytest.raises(ValueError, match="needs a model whose layers are all full attention; leave out random_kv"):
            fill_sequence(runtime.engine, sequence, subject.tokens(0, 64), seed=0)
        assert sequence.num_tokens == 0


def test_a_cache_of_transformers_is_filled_in_every_layer() -> None:
    from transformers import DynamicCache

    sizes = {"num_key_value_heads": 2, "num_attention_heads": 6, "hidden_size": 48, "num_hidden_layers": 3}
    config, cache = SimpleNamespace(model_type="llama", head_dim=None, **sizes), DynamicCache()
    fill_cache(cache, config, 4, 200, torch.bfloat16, torch.device("cpu"))
    filled = torch.stack([torch.stack([layer.keys, layer.values]) for layer in cache.layers])
    assert filled.shape == (3, 2, 4, 2, 200, 8)
    assert filled.dtype == torch.bfloat16
    assert filled.float().std((2, 3, 4, 5)).flatten().tolist() == pytest.approx([1] * 6, abs=0.05)
    assert not torch.equal(filled[0], filled[1])
