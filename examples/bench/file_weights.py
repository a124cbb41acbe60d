"""A GGUF file's weights as they stand in it, beside the same weights converted: logits, steps, and a first start.

    python examples/bench/file_weights.py [--model smollm2] [--tokens 256] [--rounds 8] [--out FILE]

Fidelity first: logits of single steps over a real text, each against the model whose weights were converted to fp32.
Then steps in turn in one process, after a context of random keys and values: figures are the median over rounds of the
best step in each. Last, a process with an empty folder of caches loads the model, answers, and says what that took;
compiled code is there already. It is run in a temporary folder, which goes.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

os.environ.setdefault("STRATAKV_COMPILED", "1")

import numpy as np
import torch
from builds import write_result

from stratakv.runtime import KVConfig, Runtime
from stratakv.runtime.bench.random_kv import fill_sequence
from stratakv.runtime.model.locate import cache_dir
from stratakv.runtime.process import compiled
from stratakv.runtime.process.hardware import hardware

_TEXT = Path(__file__).resolve().parent.parent / "northanger_abbey.txt"
_PROMPT, _CONTEXT, _STEPS = 256, 1024, 4
_FORMS = [
    ("own", "float32", "float32"), ("file", "float32", "float32"), ("file", "bfloat16", "float32"),
    ("file", "bfloat16", "bfloat16"), ("own", "bfloat16", "bfloat16"), ("int8", "bfloat16", "bfloat16"),
]  # fmt: skip
"""Weights, dtype of the model, dtype of its cache."""
_CLOSE, _CLOSE_KL = 1e-3, 1e-6
"""What rounding may do to logits, where both compute in fp32."""
_START = """
import json, time
import sys
from stratakv.runtime import KVConfig, Runtime
began, told = time.perf_counter(), []
with Runtime.load(sys.argv[1], device="cpu", weights=sys.argv[2], kv=KVConfig(index="bounds"),
                  on_convert=told.append) as runtime:
    loaded = time.perf_counter()
    runtime.chat().send("Name a colour.", max_new_tokens=16)
    done = time.perf_counter()
(peak,) = (int(line.split()[1]) << 10 for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(json.dumps({"load_s": round(loaded - began, 2), "answer_s": round(done - loaded, 2), "converts": bool(told),
                  "peak_memory_mb": round(peak / 1e6)}))
"""


def opened(model: str, weights: str, dtype: str, kv_dtype: str = "auto") -> Runtime:
    kv = KVConfig(index="bounds", budget=4096, disk_gb=0, host_gb=1, dtype=kv_dtype)
    return Runtime.load(model, device="cpu", weights=weights, dtype=dtype, kv=kv)


def logits(model: str, weights: str, dtype: str, kv_dtype: str, count: int) -> torch.Tensor:
    """After each of `count` tokens of the text behind its beginning, fp64 `[count, V]`."""
    with opened(model, weights, dtype, kv_dtype) as runtime:
        ids = np.array(runtime.tokenizer(_TEXT.read_text()).input_ids, dtype=np.uint32)
        sequence = runtime.engine.new_sequence()
        runtime.engine.prefill(sequence, ids[:_PROMPT], want_logits=False)
        known = ids[_PROMPT : _PROMPT + count]
        return torch.stack([runtime.engine.decode([sequence], [int(token)])[0] for token in known]).double()


def fidelity(model: str, count: int) -> list[dict[str, Any]]:
    expected, found = logits(model, *_FORMS[0], count), []
    p = expected.log_softmax(-1)
    for weights, dtype, kv_dtype in _FORMS[1:]:
        other = logits(model, weights, dtype, kv_dtype, count)
        kl = (p.exp() * (p - other.log_softmax(-1))).sum(-1)
        found.append({
            "weights": weights, "dtype": dtype, "kv_dtype": kv_dtype,
            "max_difference": float((expected - other).abs().max()),
            "kl_mean": float(kl.mean()), "kl_max": float(kl.max()),
            "top1_agree": float((expected.argmax(-1) == other.argmax(-1)).double().mean()),
        })  # fmt: skip
        print(json.dumps(found[-1]))
    return found


def steps(model: str, rounds: int) -> dict[str, dict[str, float]]:
    """Milliseconds of a step with each weights, and its share of `own`'s in the same round."""
    names, rng, best = ("own", "int8", "file"), np.random.default_rng(0), {}
    with ExitStack() as stack:
        runtimes = {name: stack.enter_context(opened(model, name, "bfloat16")) for name in names}
        sequences = {name: runtime.engine.new_sequence() for name, runtime in runtimes.items()}
        tokens = rng.integers(100, 40_000, _CONTEXT).astype(np.uint32)
        for name, runtime in runtimes.items():
            fill_sequence(runtime.engine, sequences[name], tokens, 1)
            best[name] = list[float]()
        for number in range(rounds + 1):  # the first warms up
            for name, runtime in runtimes.items():
                found = []
                for _ in range(_STEPS):
                    started = time.perf_counter()
                    runtime.engine.decode([sequences[name]], [100 + number])
                    found.append(time.perf_counter() - started)
                if number:
                    best[name].append(min(found) * 1e3)
    return {
        name: {
            "ms": round(statistics.median(times), 2),
            "of_own": round(statistics.median(a / b for a, b in zip(times, best["own"], strict=True)), 2),
        }
        for name, times in best.items()
    }


def start(model: str, weights: str) -> dict[str, Any]:
    """A first start and a second one, and the bytes that the first left among the models."""
    found: dict[str, Any] = {"weights": weights}
    with TemporaryDirectory() as folder:
        for when in ("first", "second"):
            done = subprocess.run(
                [sys.executable, "-c", _START, model, weights], env=os.environ | {"XDG_CACHE_HOME": folder},
                capture_output=True, text=True, check=True,
            )  # fmt: skip
            found[when] = json.loads(done.stdout)
        models = Path(folder) / "stratakv" / "models"
        found["written_mb"] = round(sum(path.stat().st_size for path in models.rglob("*") if path.is_file()) / 1e6, 1)
    print(json.dumps(found))
    return found


def main() -> None:
    os.environ.setdefault("NUMBA_CACHE_DIR", str(cache_dir()))  # for whoever has another folder of caches, too
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    if not compiled.is_available():
        raise SystemExit("a file's weights need compiled decode")
    asked = f"--model {options.model} --tokens {options.tokens} --rounds {options.rounds}"
    result: dict[str, Any] = {
        "command": f"python examples/bench/file_weights.py {asked}", "hardware": hardware(), "model": options.model,
        "against": "own float32", "tokens": options.tokens, "fidelity": fidelity(options.model, options.tokens),
    }  # fmt: skip
    exact = result["fidelity"][0]
    if not (exact["max_difference"] <= _CLOSE and exact["kl_max"] <= _CLOSE_KL):
        raise SystemExit(f"logits of the file's weights are not the converted ones': {exact}; no time is reported")
    result |= {"context": _CONTEXT, "steps": steps(options.model, options.rounds)}
    print(json.dumps(result["steps"]))
    result["start"] = [start(options.model, weights) for weights in ("own", "file")]
    write_result(result, options.out)


if __name__ == "__main__":
    main()
