"""One run: the check, then a row for every context and batch.

On a CPU all contestants of a row are in memory together and take turns in stints of steps, so that a slow spell of
the machine hits all alike. A GPU's memory is not shared like that: there each has the device to itself, one after
another.
"""

from __future__ import annotations

import gc
import itertools
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ...storage.files.file_names import as_text
from ...storage.files.scratch import scratch_folder
from ..model.locate import gguf_of
from ..process.hardware import PeakMemory, hardware, private_bytes
from .bandwidths import Bandwidths, measure_bandwidths
from .contestant import Contestant, LeftOutError, num_steps, stint_sizes
from .correctness import Tell, check_logits
from .llama_side import LlamaCpp
from .options import BenchOptions
from .ours import Ours, check_room
from .report import crossovers, describe_crossover, describe_row
from .subject import Subject
from .trace import TRACED_STEPS, trace_steps
from .transformers_side import Offloaded, Quantised, Transformers, needed_bytes

Make = Callable[[], Contestant]


def run_bench(options: BenchOptions, log: Tell) -> dict[str, Any]:
    """Measure and return one JSON-serialisable result.

    Raises:
        ValueError: an option is out of range. WrongLogitsError: the correctness check failed.
        DoesNotFitError: a context does not fit the model's window or the tiers.
    """
    with scratch_folder("bench", options.kv_dir) as folder:
        subject = Subject.load(options, folder, _positions(options, max(options.contexts)), log)
        for weights in options.weights:
            subject.with_weights(weights)
        options = options.with_gpu_room(subject.held_bytes)
        _hold_to_the_cap(options, subject)
        _check_all_fit(options, subject, folder)
        error = check_logits(subject, options, folder / "check", log)
        measured = measure_bandwidths(subject.model.device, folder)
        log(f"memory is read with {measured.memory / 1e9:.1f} GB/s")
        bench = Bench(subject, options, measured.limited(options.link_gbps, options.disk_gbps), log)
        rows = [bench.row(context, batch) for context, batch in itertools.product(options.contexts, options.batches)]
    crossed = crossovers(rows)
    for one in crossed:
        log(describe_crossover(one))
    model = subject.model
    return {
        "command": as_text(" ".join(["stratakv", *sys.argv[1:]])),
        "hardware": hardware(),
        "options": options.as_dict(),
        "model": {
            "name": as_text(subject.name), "random_weights": options.shape is not None, "layers": model.num_layers,
            "dtype": str(model.dtype).removeprefix("torch."), "weights_bytes": subject.weights_bytes,
        },
        "bandwidths": {"measured": measured.as_dict(), "used": bench.bandwidths.as_dict()},
        "logits_error": error,
        "rows": rows,
        "crossovers": crossed,
    }  # fmt: skip


def _positions(options: BenchOptions, context: int) -> int:
    """The number of tokens of a sequence at the end of both turns."""
    steps = num_steps(options.steps) + num_steps(options.later_steps)
    return context + steps + options.turn_tokens + (TRACED_STEPS if options.trace is not None else 0)


def _hold_to_the_cap(options: BenchOptions, subject: Subject) -> None:
    """Let a CUDA device give no more than the cap, whoever asks."""
    device = subject.model.device
    if options.gpu_memory_cap is not None and device.type == "cuda":
        total = torch.cuda.get_device_properties(device).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, 1e9 * options.gpu_memory_cap / total), device)


def _check_all_fit(options: BenchOptions, subject: Subject, folder: Path) -> None:
    """Refuse the largest row before the smaller ones are measured."""
    for number, caps in enumerate(options.caps):
        with subject.runtime(options.kv(folder / f"room-{number}", "window", caps)) as runtime:
            check_room(runtime, options, max(options.batches), _positions(options, max(options.contexts)))


@dataclass(frozen=True, slots=True)
class Script:
    """The tokens `[batch, n]` that every contestant of a row is given."""

    prompts: tuple[np.ndarray, np.ndarray]
    steps: tuple[np.ndarray, np.ndarray]


class Bench:
    """Measures rows.

    Args:
        bandwidths: those that the roofline is computed with.
    """

    def __init__(self, subject: Subject, options: BenchOptions, bandwidths: Bandwidths, log: Tell) -> None:
        self.subject, self.options, self.bandwidths, self.log = subject, options, bandwidths, log
        self._device = subject.model.device

    def row(self, context: int, batch: int) -> dict[str, Any]:
        """Measure all contestants at one context length and batch."""
        self.log(f"{context} tokens, batch {batch}")
        tokens = _positions(self.options, context)
        script = self._script(context, batch)
        left_out: dict[str, str] = {}
        ours: list[Make] = [
            partial(
                Ours,
                self.subject,
                self.options,
                index,
                caps,
                batch,
                tokens,
                self.bandwidths,
                prefetch=prefetch,
                weights=weights,
            )
            for index, weights, caps, prefetch in itertools.product(
                self.options.indexes, self.options.weights, self.options.caps, self.options.prefetch
            )
        ]
        others = list(self._baselines(context, batch, left_out))
        if self._device.type == "cpu":
            found, host = self._in_turn(ours, others, script, left_out)
        else:
            found, host = [], {}
            for make in ours:
                found += self._in_turn([make], [], script, left_out)[0]
            for other in others:
                try:
                    found += self._in_turn([], [other], script, left_out)[0]
                except torch.OutOfMemoryError:
                    left_out[other[0]] = "out of device memory"
        row = {
            "context": context, "batch": batch, "random_kv": self.options.random_kv, "contestants": found,
            "left_out": left_out, "host_memory": host,
        }  # fmt: skip
        for line in describe_row(row):
            self.log(line)
        return row

    def _in_turn(
        self, ours: list[Make], others: list[tuple[str, Make]], script: Script, left_out: dict[str, str]
    ) -> tuple[list[dict[str, Any]], dict[str, int]]:
        """Take both turns with everybody, stint by stint. Returns the results of each, and the host memory that ours
        took."""
        contestants: list[Contestant] = []
        if self._device.type == "cuda":
            gc.collect()
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(self._device)
        with ExitStack() as stack:
            before = private_bytes()
            with PeakMemory() as memory:
                for make in ours:
                    contestants.append(self._begin(make, script, stack))
            for name, make in others:
                try:
                    contestants.append(self._begin(make, script, stack))
                except LeftOutError as reason:
                    left_out[name] = str(reason)
            take_steps(contestants, script.steps[0], self.options.steps)
            for contestant in contestants:
                contestant.begin_turn(script.prompts[1], random_kv=False)
            take_steps(contestants, script.steps[1], self.options.later_steps)
            if self.options.trace is not None and ours:
                try:
                    trace_steps(contestants[0], script.steps[1][:, :TRACED_STEPS].T.tolist(), self.options.trace)
                except OSError as error:  # the figures are there all the same
                    left_out["trace"] = f"it could not be written ({error.strerror})"
            found = [contestant.result() for contestant in contestants]
            if self._device.type == "cuda":
                found = [{**one, "device_peak_bytes": torch.cuda.max_memory_allocated(self._device)} for one in found]
        return found, {"before_bytes": before, "peak_over_before_bytes": memory.peak - before}

    def _begin(self, make: Make, script: Script, stack: ExitStack) -> Contestant:
        contestant = make()
        stack.callback(contestant.close)
        contestant.begin_turn(script.prompts[0], random_kv=self.options.random_kv)
        took = contestant.turns[0].ttft_s
        self.log(f"  {contestant.name}: " + (f"first token after {took:.2f} s" if took else "context filled"))
        return contestant

    def _script(self, context: int, batch: int) -> Script:
        options = self.options
        sizes = [context, num_steps(options.steps), options.turn_tokens, num_steps(options.later_steps)]
        drawn = np.stack([self.subject.tokens(b, sum(sizes)) for b in range(batch)])
        first, steps, second, later = np.split(drawn, np.cumsum(sizes)[:-1], 1)
        return Script((first, second), (steps, later))

    def _baselines(self, context: int, batch: int, left_out: dict[str, str]) -> Iterator[tuple[str, Make]]:
        asked, subject = self.options.baselines, self.subject
        tokens = _positions(self.options, context)
        if "dense" in asked:
            for dtype in subject.dense_dtypes:
                name = f"dense {str(dtype).removeprefix('torch.')}"
                reason = self._too_large(dtype, batch, tokens)
                if reason:
                    left_out[name] = reason
                else:
                    yield name, partial(Transformers, subject, subject.reference(dtype), batch, self.bandwidths)
        same = subject.reference(subject.model.dtype)
        if "offloaded" in asked:
            if self.options.link_gbps is not None:
                left_out["offloaded"] = "its copies cannot be slowed down, as ours are here"
            else:
                yield "offloaded", partial(Offloaded, subject, same, batch, self.bandwidths)
        if "quantised" in asked:
            yield "quantised", partial(Quantised, subject, same, batch, self.bandwidths)
        if "llama.cpp" in asked:
            gguf = [] if self.options.shape is not None else gguf_of(self.options.model)
            yield "llama.cpp", partial(LlamaCpp, gguf, batch, tokens, subject.model.config.vocab_size)

    def _too_large(self, dtype: torch.dtype, batch: int, tokens: int) -> str | None:
        """The reason why dense attention cannot be had here, if there is one: weights and the whole cache are in memory
        at once."""
        if not self.subject.has_room_for(dtype, self.options):
            return "no memory for the weights a second time"
        cap, needed = self.options.gpu_memory_cap, needed_bytes(self.subject, dtype, batch, tokens)
        if cap is None or needed <= 1e9 * cap:
            return None
        return f"model and cache need {needed / 1e9:.3g} GB, the card has {cap:g} GB"


def take_steps(contestants: list[Contestant], steps: np.ndarray, timed: int) -> None:
    """Have everybody decode the same tokens `[batch, n]`, of which `timed` steps count."""
    at = 0
    for size, untimed in stint_sizes(timed):
        for contestant in contestants:
            contestant.take_stint(steps[:, at : at + size].T.tolist(), untimed)
        at += size
    for contestant in contestants:
        contestant.end_turn()
