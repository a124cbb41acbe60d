"""What a layer reads of a token besides comes from a table and from the embedded token, and is the same in any part."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import torch

from stratakv.runtime.model.layer_inputs import LayerInputs, LayerTables
from stratakv.runtime.untrusted.families import FAMILIES

CONFIG = SimpleNamespace(num_hidden_layers=3, hidden_size=10, rms_norm_eps=1e-6)
EMBEDDED = torch.randn(1, 5, 10, generator=torch.Generator().manual_seed(0))
IDS = np.array([[4, 0, 2, 2, 6]], dtype=np.uint32)


def tables() -> LayerTables:
    made, draw = LayerTables(CONFIG, FAMILIES["gemma4_text"].form, 7, 4), torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in made.parameters():
            weight.copy_(torch.randn(weight.shape, generator=draw))
    return made.requires_grad_(False)


def test_a_layers_part_of_the_table_and_of_the_projection() -> None:
    own = tables()
    row, made = own.table[2, 4:8] * 2, own.projection.weight[4:8] @ EMBEDDED[0, 3] / 10**0.5
    expected = (made * (made.pow(2).mean() + 1e-6) ** -0.5 * own.norm.weight + row) / 2**0.5
    found = LayerInputs(own, IDS, EMBEDDED).of(1)
    assert found is not None
    assert found.shape == (1, 5, 4)
    torch.testing.assert_close(found[0, 3], expected)
    some = LayerInputs(own, torch.from_numpy(IDS.astype(np.int64)), EMBEDDED).of(1, slice(3, 5))
    torch.testing.assert_close(some, found[:, 3:])


def test_the_embedded_tokens_are_those_that_were_given() -> None:
    """Hidden states take their place as layers go on."""
    hidden = EMBEDDED.clone()
    inputs = LayerInputs(tables(), IDS, hidden)
    before = inputs.of(2)
    hidden.zero_()
    assert before is not None
    assert torch.equal(before, inputs.of(2))


def test_most_models_layers_read_nothing_besides() -> None:
    assert LayerInputs(None, IDS, EMBEDDED).of(0) is None
