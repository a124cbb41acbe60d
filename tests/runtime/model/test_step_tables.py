"""The rotary tables of steps are those of the positions, whatever was asked for before."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from tiny_models import save_tiny_model

from stratakv.runtime.model.lean_layer import for_lean
from stratakv.runtime.model.model import Model


def test_rows_are_those_of_their_positions_and_reaches(tmp_path: Path) -> None:
    longrope = {"rope_type": "longrope", "short_factor": [1.0] * 2, "long_factor": [3.0] * 2}
    directory = save_tiny_model(
        tmp_path, "phi3", max_position_embeddings=4096, original_max_position_embeddings=96, rope_scaling=longrope
    )
    model = Model.load(directory, torch.device("cpu"), torch.float32)
    rng = np.random.default_rng(0)
    for _ in range(100):  # more blocks than are kept
        positions = rng.integers(0, 8000, rng.integers(1, 4)).tolist()
        reaches = [model.rope.reach(position + 1) for position in positions]
        found = model.step_tables(positions, reaches)
        for b, (position, reach) in enumerate(zip(positions, reaches, strict=True)):
            for kind, expected in model.rotary(torch.tensor([[position]]), torch.float32, reach).items():
                torch.testing.assert_close(found.of(b).rotary[kind], expected)
                torch.testing.assert_close(found.of(b).lean[kind], for_lean(*expected, model.head_dim))
