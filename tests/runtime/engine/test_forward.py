"""From tokens to logits: whoever knows the tokens, the step is the same."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from stratakv.runtime import KVConfig, Runtime
from stratakv.runtime.engine.forward import forward

TEXT = np.arange(3, 90, dtype=np.uint32)


@pytest.mark.parametrize("is_compiled", [True, False])
def test_tokens_that_only_the_device_knows_lead_to_the_same_logits(
    is_compiled: bool, tiny_llama: Path, tmp_path: Path
) -> None:
    with Runtime.load(tiny_llama, dtype="float32", kv=KVConfig(path=tmp_path, index="bounds", disk_gb=0)) as runtime:
        engine, found = runtime.engine, []
        for tokens in ([7, 8], torch.tensor([7, 8])):
            sequences = [engine.new_sequence() for _ in range(2)]
            for sequence, length in zip(sequences, (87, 40), strict=True):
                engine.prefill(sequence, TEXT[:length], want_logits=False)
            with engine.turn(), torch.inference_mode():
                logits = forward(
                    engine.model, sequences, tokens, compiled=engine.compiled if is_compiled else None,
                    threads=engine.threads, resident=None, prefetcher=engine.prefetcher,
                )  # fmt: skip
            assert [sequence.layers[0].pages.tail_len for sequence in sequences] == [8, 9]
            assert [sequence.num_tokens for sequence in sequences] == [87, 40], "the log is somebody else's"
            found.append(logits)
            for sequence in sequences:
                sequence.close()
        assert torch.equal(*found)
