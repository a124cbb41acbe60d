"""All contexts pass a layer before any enters the next, and tiered layers are seen as they compute."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import transformers
from tiny_models import VOCABULARY, save_tiny_model
from torch import Tensor

from stratakv.runtime.engine.layerwise import Sides, layer_by_layer
from stratakv.runtime.model.model import Model

CONTEXTS = list(np.random.default_rng(0).integers(3, VOCABULARY, (2, 50)))


def test_keys_and_values_are_transformers_own(tmp_path: Path) -> None:
    """In a model some of whose layers have a window that is shorter than the contexts."""
    folder = save_tiny_model(tmp_path, "gemma3_text")
    with torch.inference_mode():
        theirs = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        layers = theirs(torch.from_numpy(np.array(CONTEXTS)), use_cache=True).past_key_values.layers
    model = Model.load(folder, torch.device("cpu"), torch.float32)
    calls: list[tuple[str, int]] = []
    seen: list[tuple[Tensor, Tensor]] = []

    def see(layer: int, plain: Sides, rotated: Sides, values: Tensor, scale: float) -> None:
        calls.append(("see", layer))
        turned = model.rotation(layer, model.rope.reach(50)).rotate(plain[1], torch.arange(50))
        torch.testing.assert_close(turned, rotated[1])
        seen.append((rotated[1], values))

    with torch.inference_mode():
        for layer in layer_by_layer(model, CONTEXTS, see, lambda layer: calls.append(("enter", layer))):
            for context, (keys, values) in enumerate(seen):
                torch.testing.assert_close(keys, layers[layer].keys[context], rtol=1e-4, atol=1e-4)
                torch.testing.assert_close(values, layers[layer].values[context], rtol=1e-4, atol=1e-4)
            seen.clear()
    expected: list[tuple[str, int]] = []
    for layer in range(max(model.tiered) + 1):
        expected += [("enter", layer), *[("see", layer)] * (2 if layer in model.tiered else 0)]
    assert calls == expected
    assert len(model.tiered) < len(model.windows)
