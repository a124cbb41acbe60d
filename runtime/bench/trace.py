"""A trace of a few decode steps, for chrome://tracing or https://ui.perfetto.dev."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile, record_function

from ...storage.files.scratch import scratch_folder
from ..process.outputs import output
from .contestant import Contestant

TRACED_STEPS = 4


def trace_steps(contestant: Contestant, steps: list[list[int]], path: Path) -> None:
    """Decode `steps` (a token per sequence each) under torch's profiler; they count in nobody's times. Raises OSError
    if the trace cannot be written."""
    activities = [ProfilerActivity.CPU]
    if torch.cuda.is_available():
        activities.append(ProfilerActivity.CUDA)
    with profile(activities=activities) as found:
        for tokens in steps:
            with record_function("decode step"):
                contestant.decode(tokens)
    with scratch_folder("trace") as folder:  # torch takes only names that are text, and raises nothing if it fails
        made = folder / ("trace.json" + (".gz" if path.suffix == ".gz" else ""))
        found.export_chrome_trace(str(made))
        with made.open("rb") as source, output(path) as file:
            shutil.copyfileobj(source, file)
