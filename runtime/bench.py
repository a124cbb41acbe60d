"""Decode speed over context length, beside transformers' dense decode in the same run: in our dtype, and
in fp32 where 16-bit matrices are slow, which is where transformers is fastest.

A speed is reported only after the same run's correctness check: with the budget at the context's
length, our logits must equal transformers' own for the very tokens that are timed.
"""

from __future__ import annotations

import copy
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

_WARM_UP = 4
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
            runtime.check_fits(0, max(contexts) + steps + _WARM_UP, "the longest context")
            ids = _tokens(runtime, source, max(contexts))
            base = private_bytes()
            with PeakMemory() as memory:
                ours = [_Ours(runtime.engine, ids[:context], log) for context in contexts]
                for side in ours:
                    side.step()
            reference = _Reference(runtime, runtime.model.prefill_dtype)
            theirs = [[_Theirs(reference, ids[:context], log)] for context in contexts]
            if runtime.model.dtype != reference.dtype:
                same = _Reference(runtime, runtime.model.dtype)
                for others in theirs:
                    others.append(others[0].in_dtype_of(same))
            for _ in range(steps + _WARM_UP):  # in turn, so that a slow spell of the machine hits all alike
                for mine, others in zip(ours, theirs, strict=True):
                    for other in others:
                        other.step(mine.token)
                    mine.step()
            stats = runtime.stats()
        error = _check(device, folder, reference, ids[: min(contexts)], log)
    rows = []
    for context, mine, others in zip(contexts, ours, theirs, strict=True):
        row: dict[str, Any] = {"context": context, "stratakv": mine.result()}
        log(f"{context:>6} tokens: stratakv {mine.median:.1f} ms per token")
        for other in others:
            ratio = mine.median / other.median
            row[f"transformers_dense_{other.reference.dtype_name}"] = {**other.result(), "ratio": ratio}
            log(f"  transformers dense {other.reference.dtype_name} {other.median:.1f} ms, ratio {ratio:.2f}")
        rows.append(row)
    growth = ours[-1].median / ours[0].median
    log(f"decode at {contexts[-1]} tokens costs {growth:.2f}x decode at {contexts[0]}")
    log(f"private memory peaked {(memory.peak - base) / 1e6:.0f} MB above the loaded model's {base / 1e6:.0f} MB")
    return {
        "command": "stratakv " + " ".join(sys.argv[1:]),
        "hardware": hardware(),
        "model": model,
        "dtype": stats["dtype"],
        "kv_dtype": stats["kv_dtype"],
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


class _Side:
    """One context being decoded, and how long each step took."""

    ttft_s: float

    def __init__(self) -> None:
        self.times: list[float] = []

    @property
    def _timed(self) -> list[float]:
        return sorted(1000 * seconds for seconds in self.times[-self._steps :])

    @property
    def _steps(self) -> int:
        return max(1, len(self.times) - _WARM_UP)

    @property
    def median(self) -> float:
        """Milliseconds per token."""
        return statistics.median(self._timed)

    def result(self) -> dict[str, float]:
        timed = self._timed
        p90 = timed[min(len(timed) - 1, int(0.9 * len(timed)))]
        return {"ttft_s": self.ttft_s, "decode_ms_median": self.median, "decode_ms_p90": p90}


class _Ours(_Side):
    def __init__(self, engine: Engine, ids: np.ndarray, log: Callable[[str], None]) -> None:
        super().__init__()
        self.engine, self.sequence = engine, engine.new_sequence()
        started = time.perf_counter()
        logits = engine.prefill(self.sequence, ids, reuse=False).logits
        self.ttft_s = time.perf_counter() - started
        log(f"{len(ids):>6} tokens prefilled in {self.ttft_s:.1f} s")
        assert logits is not None
        self.token = int(logits.argmax())

    def step(self) -> None:
        started = time.perf_counter()
        self.token = int(self.engine.decode([self.sequence], [self.token])[0].argmax())
        self.times.append(time.perf_counter() - started)

    def result(self) -> dict[str, float]:
        return {**super().result(), "tokens_read": self.engine.tokens_read}


class _Theirs(_Side):
    def __init__(self, reference: _Reference, ids: np.ndarray, log: Callable[[str], None]) -> None:
        super().__init__()
        self.reference = reference
        started = time.perf_counter()
        self.cache, _ = reference.start(ids)
        self.ttft_s = time.perf_counter() - started
        log(f"{len(ids):>6} tokens prefilled by transformers in {self.ttft_s:.1f} s")

    def in_dtype_of(self, reference: _Reference) -> _Theirs:
        """The same context for a model of another dtype: its cache is this one, cast."""
        twin = copy.copy(self)
        twin.reference, twin.times, twin.cache = reference, [], copy.deepcopy(self.cache)
        for layer in twin.cache.layers:
            layer.keys, layer.values = layer.keys.to(reference.dtype), layer.values.to(reference.dtype)
        return twin

    def step(self, token: int) -> None:
        started = time.perf_counter()
        self.reference.step(self.cache, token)
        self.times.append(time.perf_counter() - started)


class _Reference:
    """transformers' own model: SDPA attention, DynamicCache."""

    def __init__(self, runtime: Runtime, dtype: torch.dtype) -> None:
        from transformers import AutoModelForCausalLM

        self.directory: str = runtime.model.hf.config._name_or_path
        self.dtype = dtype
        self.dtype_name = str(dtype).removeprefix("torch.")
        loaded = AutoModelForCausalLM.from_pretrained(self.directory, dtype=self.dtype, attn_implementation="sdpa")
        self.model = loaded.to(runtime.model.device).eval()
        self.device = runtime.model.device

    @torch.inference_mode()
    def start(self, ids: np.ndarray) -> tuple[Any, torch.Tensor]:
        """A cache holding `ids`, and the last logits."""
        from transformers import DynamicCache

        cache = DynamicCache(config=self.model.config)
        tokens = torch.from_numpy(ids.astype(np.int64)).to(self.device).unsqueeze(0)
        for part in torch.split(tokens, 512, 1):
            out = self.model(part, past_key_values=cache, logits_to_keep=1)
        return cache, out.logits[0, -1].float()

    @torch.inference_mode()
    def step(self, cache: Any, token: int) -> torch.Tensor:
        out = self.model(torch.tensor([[token]], device=self.device), past_key_values=cache)
        logits: torch.Tensor = out.logits[0, -1].float()
        return logits


def _check(device: str, folder: str, reference: _Reference, ids: np.ndarray, log: Callable[[str], None]) -> float:
    """Largest logit difference from transformers, same dtype, when everything is read."""
    kv = KVConfig(path=folder, index="dense")
    with Runtime.load(reference.directory, device=device, dtype=reference.dtype_name, kv=kv) as runtime:
        sequence = runtime.engine.new_sequence()
        mine = runtime.engine.prefill(sequence, ids, reuse=False).logits
        assert mine is not None
        cache, other = reference.start(ids)
        worst = 0.0
        for _ in range(8):
            worst = max(worst, float((mine - other).abs().max() / other.abs().max()))
            token = int(other.argmax())
            mine, other = runtime.engine.decode([sequence], [token])[0], reference.step(cache, token)
    if worst > _TOLERANCE[reference.dtype_name]:
        raise RuntimeError(f"logits differ from transformers' by {worst:.2e} of their size; no speed is reported")
    log(f"logits equal transformers' within {worst:.1e} of their size when everything is read")
    return worst


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
