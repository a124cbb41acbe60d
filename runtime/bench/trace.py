"""A trace of a few decode steps, for chrome://tracing or https://ui.perfetto.dev."""

from __future__ import annotations

from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile, record_function

from .contestant import Contestant

TRACED_STEPS = 4


def trace_steps(contestant: Contestant, steps: list[list[int]], path: Path) -> None:
    """Decode `steps` (a token per sequence each) under torch's profiler; they are in nobody's times."""
    activities = [ProfilerActivity.CPU]
    if torch.cuda.is_available():
        activities.append(ProfilerActivity.CUDA)
    with profile(activities=activities) as found:
        for tokens in steps:
            with record_function("decode step"):
                contestant.decode(tokens)
    found.export_chrome_trace(str(path))
