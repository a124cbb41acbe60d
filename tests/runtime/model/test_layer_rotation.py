"""A layer's positions as indexes apply them and take them away."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny_models import save_tiny_model

from stratakv.runtime.model.model import Model

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("family", "dim", "turned"),
    [
        ("llama", 8, 8),
        ("phi3", 8, 4),  # the first half of the channels
        ("qwen3_5_text", 16, 4),
        ("gemma4_text", 32, 8),  # a quarter of the pairs, which are scattered over all channels
        ("glm4_moe_lite-groups", 40, 8),  # behind the latent
    ],
)
def test_keys_of_an_index_are_rotated_as_the_models_and_back(
    family: str, dim: int, turned: int, tmp_path: Path
) -> None:
    model = Model.load(save_tiny_model(tmp_path, family), CPU, torch.float32)
    keys, positions = torch.randn(2, 5, dim), torch.tensor([0, 3, 99, 1000, 4000])
    rotation = model.rotation(1)
    rotated = rotation.rotate(keys, positions)
    tables = model.rotary(positions.unsqueeze(0), torch.float32)
    assert torch.equal(rotated, model.rotate(1, keys[None], keys[None], tables)[1][0])
    assert int((rotated[:, 1:] != keys[:, 1:]).any(1).any(0).sum()) == turned
    torch.testing.assert_close(rotation.unrotate(rotated, positions), keys)
    each = positions.repeat(2, 1)
    each[1] += 1
    by_head = rotation.rotate(keys, each)
    assert torch.equal(by_head[0], rotated[0])
    assert torch.equal(by_head[1], rotation.rotate(keys, positions + 1)[1])


def test_a_table_that_scales_is_undone_too(tmp_path: Path) -> None:
    yarn = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 1024}
    folder = save_tiny_model(tmp_path, rope_parameters=yarn, num_hidden_layers=1)
    rotation = Model.load(folder, CPU, torch.float32).rotation(0)
    keys, positions = torch.randn(2, 5, 8), torch.arange(900, 905)
    rotated = rotation.rotate(keys, positions)
    assert float((rotated.norm(dim=-1) / keys.norm(dim=-1)).min()) > 1.1
    torch.testing.assert_close(rotation.unrotate(rotated, positions), keys)


def test_frequencies_last_as_long_as_the_rotation(tmp_path: Path) -> None:
    """A step that was recorded reads them, whichever texts have come since; and other reaches have others."""
    dynamic = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 4.0}
    folder = save_tiny_model(tmp_path, rope_parameters=dynamic, max_position_embeddings=64, num_hidden_layers=1)
    model = Model.load(folder, CPU, torch.float32)
    rotation = model.rotation(0, 100)
    (held,) = rotation.reads
    keys, positions = torch.randn(2, 5, 8), torch.arange(5)
    rotated = rotation.rotate(keys, positions)
    for reach in range(101, 120):  # more than the model keeps
        (other,) = model.rotation(0, reach).reads
        assert not torch.equal(other, held)
    held.zero_()
    assert torch.equal(rotation.rotate(keys, positions), keys)
    assert not torch.equal(rotated, keys)
    assert model.rotation(0, 100).reads[0].data_ptr() != held.data_ptr()
