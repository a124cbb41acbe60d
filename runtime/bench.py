"""Decode speed over context length, beside transformers' dense decode in the same run.

A speed is reported only after the same run's correctness check: with the budget at the context's
length, our logits must equal transformers' own for the very tokens that are timed.
"""

from __future__ import annotations

import os
import platform
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch

from .config import KVConfig
from .documents import read_text_file
from .engine import Engine
from .runtime import Runtime

_TOLERANCE = {"float32": 1e-4, "bfloat16": 5e-2, "float16": 1e-2}
"""Largest logit difference, as a share of the largest logit. bf16 keeps 8 bits, fp16 11."""


def run_bench(
    model: str, device: str, dtype: str, kv: dict[str, Any], contexts: list[int], steps: int,
    text: Path | None, *, log: Callable[[str], None],
) -> dict[str, Any]:  # fmt: skip
    """Measure and return one JSON-serialisable result.

    Args:
        kv: `KVConfig` arguments without `path`; a fresh store is used and removed.
        contexts: context lengths in tokens. steps: timed decode steps at each.

    Raises:
        ValueError: a length is out of range. RuntimeError: the correctness check failed.
    """
    if steps < 1 or min(contexts) < 64:
        raise ValueError(f"bench needs at least 1 step and contexts of 64 tokens or more, not {steps} and {contexts}")
    source = read_text_file(text or _bundled_text())
    with tempfile.TemporaryDirectory(prefix="stratakv-bench-") as folder:
        with Runtime.load(model, device=device, dtype=dtype, kv=KVConfig(path=folder, **kv)) as runtime:
            runtime.check_fits(0, max(contexts) + steps, "the longest context")
            ids = _tokens(runtime, source, max(contexts))
            base = private_bytes()
            with PeakMemory() as memory:
                ours = [_measure_ours(runtime.engine, ids[:context], steps, log) for context in contexts]
            stats = runtime.stats()
            reference = _Reference(runtime)
            theirs = [
                _measure_theirs(reference, ids[:context], row["tokens"], log)
                for context, row in zip(contexts, ours, strict=True)
            ]
        error = _check(model, device, dtype, folder, reference, ids[: min(contexts)], log)
    rows = []
    for context, mine, other in zip(contexts, ours, theirs, strict=True):
        del mine["tokens"]
        ratio = mine["decode_ms_median"] / other["decode_ms_median"]
        rows.append({"context": context, "stratakv": mine, "transformers_dense": other, "ratio": ratio})
        log(
            f"{context:>6} tokens: stratakv {mine['decode_ms_median']:.1f} ms, transformers dense "
            f"{other['decode_ms_median']:.1f} ms per token, ratio {ratio:.2f}"
        )
    growth = rows[-1]["stratakv"]["decode_ms_median"] / rows[0]["stratakv"]["decode_ms_median"]
    log(f"decode at {contexts[-1]} tokens costs {growth:.2f}x decode at {contexts[0]}")
    return {
        "command": "stratakv " + " ".join(sys.argv[1:]),
        "hardware": hardware(),
        "model": model,
        "dtype": stats["dtype"],
        "index": stats["index"],
        "budget": stats["budget"],
        "steps": steps,
        "logits_error": error,
        "rows": rows,
        "decode_longest_over_shortest": growth,
        "private_memory": {"model_bytes": base, "peak_over_model_bytes": memory.peak - base},
        "tiers": stats["tiers"],
        "hit_rate": stats["hit_rate"],
    }


def _measure_ours(engine: Engine, ids: np.ndarray, steps: int, log: Callable[[str], None]) -> dict[str, Any]:
    sequence = engine.new_sequence()
    started = time.perf_counter()
    done = engine.prefill(sequence, ids, reuse=False)
    ttft = time.perf_counter() - started
    log(f"{len(ids):>6} tokens prefilled in {ttft:.1f} s")
    assert done.logits is not None
    token, times, tokens = int(done.logits.argmax()), [], []
    for _ in range(steps + 4):
        tokens.append(token)
        started = time.perf_counter()
        token = int(engine.decode([sequence], [token])[0].argmax())
        times.append(time.perf_counter() - started)
    sequence.close()
    return {"ttft_s": ttft, **_times(times[4:]), "tokens_read": engine.tokens_read, "tokens": tokens}


class _Reference:
    """transformers' own model: SDPA attention, DynamicCache."""

    def __init__(self, runtime: Runtime) -> None:
        from transformers import AutoModelForCausalLM

        name = runtime.model.hf.config._name_or_path
        loaded = AutoModelForCausalLM.from_pretrained(name, dtype=runtime.model.dtype, attn_implementation="sdpa")
        self.model = loaded.to(runtime.model.device).eval()
        self.device = runtime.model.device

    @torch.inference_mode()
    def start(self, ids: np.ndarray) -> tuple[Any, torch.Tensor]:
        """A cache holding `ids`, and the last logits."""
        from transformers import DynamicCache

        cache = DynamicCache(config=self.model.config)
        tokens = torch.from_numpy(ids.astype(np.int64)).to(self.device).unsqueeze(0)
        for part in tokens.split(512, 1):
            out = self.model(part, past_key_values=cache, logits_to_keep=1)
        return cache, out.logits[0, -1].float()

    @torch.inference_mode()
    def step(self, cache: Any, token: int) -> torch.Tensor:
        out = self.model(torch.tensor([[token]], device=self.device), past_key_values=cache)
        return out.logits[0, -1].float()  # type: ignore[no-any-return]


def _measure_theirs(
    reference: _Reference, ids: np.ndarray, tokens: list[int], log: Callable[[str], None]
) -> dict[str, Any]:
    started = time.perf_counter()
    cache, _ = reference.start(ids)
    ttft = time.perf_counter() - started
    log(f"{len(ids):>6} tokens prefilled by transformers in {ttft:.1f} s")
    times = []
    for token in tokens:
        started = time.perf_counter()
        reference.step(cache, token)
        times.append(time.perf_counter() - started)
    return {"ttft_s": ttft, **_times(times[4:])}


def _check(
    model: str, device: str, dtype: str, folder: str, reference: _Reference, ids: np.ndarray, log: Callable[[str], None]
) -> float:
    """Largest logit difference from transformers when everything is read."""
    with Runtime.load(model, device=device, dtype=dtype, kv=KVConfig(path=folder, index="dense")) as runtime:
        sequence = runtime.engine.new_sequence()
        mine = runtime.engine.prefill(sequence, ids, reuse=False).logits
        assert mine is not None
        cache, other = reference.start(ids)
        worst = 0.0
        for _ in range(8):
            worst = max(worst, float((mine - other).abs().max() / other.abs().max()))
            token = int(other.argmax())
            mine, other = runtime.engine.decode([sequence], [token])[0], reference.step(cache, token)
        kind = runtime.store.layout.dtype
    if worst > _TOLERANCE[kind]:
        raise RuntimeError(f"logits differ from transformers' by {worst:.2e} of their size; no speed is reported")
    log(f"logits equal transformers' within {worst:.1e} of their size when everything is read")
    return worst


def _times(seconds: list[float]) -> dict[str, float]:
    ordered = sorted(1000 * s for s in seconds)
    return {
        "decode_ms_median": statistics.median(ordered),
        "decode_ms_p90": ordered[min(len(ordered) - 1, int(0.9 * len(ordered)))],
    }


def _tokens(runtime: Runtime, text: str, count: int) -> np.ndarray:
    ids = runtime.tokenizer(text, add_special_tokens=False).input_ids
    return np.array((ids * (count // len(ids) + 1))[:count], dtype=np.uint32)


def _bundled_text() -> Path:
    path = Path(__file__).resolve().parent.parent / "examples" / "northanger_abbey.txt"
    if not path.is_file():
        raise FileNotFoundError("the bundled text is only in a source checkout; give one with --text FILE")
    return path


def hardware() -> dict[str, Any]:
    """What the numbers were measured on."""
    cpu = platform.processor() or platform.machine()
    for line in Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []:
        if line.startswith("model name"):
            cpu = line.partition(":")[2].strip()
            break
    found = {
        "cpu": cpu, "cores": os.cpu_count(), "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "memory_gb": round(psutil.virtual_memory().total / 1e9, 1), "torch": torch.__version__,
        "threads": torch.get_num_threads(), "platform": platform.platform(terse=True),
    }  # fmt: skip
    if torch.cuda.is_available():
        found["gpu"] = torch.cuda.get_device_name()
    return found


def private_bytes() -> int:
    """Anonymous memory of this process; pages mapped from files do not count."""
    status = Path("/proc/self/status")
    if status.exists():
        for line in status.read_text().splitlines():
            if line.startswith("RssAnon:"):
                return int(line.split()[1]) * 1024
    return int(psutil.Process().memory_info().rss)


class PeakMemory:
    """Samples `private_bytes` every 10 ms while it is open; `peak` is the largest seen."""

    def __init__(self) -> None:
        self.peak = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def _watch(self) -> None:
        while not self._stop.wait(0.01):
            self.peak = max(self.peak, private_bytes())

    def __enter__(self) -> PeakMemory:
        self.peak = private_bytes()
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._stop.set()
        self._thread.join()
