"""Prefill and decode of small models whose layers are of several kinds, beside transformers in the same run.

    python examples/bench/kinds.py [--kinds hybrid,latent] [--context 8192] [--steps 8] [--index spectral]
        [--budget 1024] [--out OUT.json]

Each kind is a published shape made narrower and cut to a few layers, in fp32 with random weights: the order of its
layers is the published one, and so are the widths of heads and latents. Both sides multiply with the same weights, in
memory once, and logits are compared before anything is timed (`stratakv bench`, which does the rest: contestants take
turns in stints). A model so small spends more of a step on attention and on calling than a large one, whose weights
take most of it: `kinds_of_layers.py` takes a few layers of published width.

`sharing on all rows` is the shape of `sharing` beside a transformers whose layers that share keys run on all rows of a
prompt. As it is (5.24), they run on the last one where one token's logits are asked for.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from builds import HERE, Build, write_result

from stratakv.runtime.bench.options import BenchOptions
from stratakv.runtime.bench.run import run_bench
from stratakv.runtime.bench.shapes import SHAPES

NARROW: dict[str, Any] = {"hidden": 256, "intermediate": 768, "vocabulary": 8192}
Changes = dict[str, Any]
KINDS: dict[str, tuple[str, Changes, Changes]] = {
    "hybrid": (
        "qwen3.8-27b", {"layers": 4, "heads": 6, "kv_heads": 1},
        {"linear_num_key_heads": 2, "linear_num_value_heads": 6},
    ),
    "hybrid with experts": (
        "qwen3.6-35b-a3b", {"layers": 4, "heads": 8, "kv_heads": 1, "experts": (32, 4, 256)},
        {"linear_num_key_heads": 2, "linear_num_value_heads": 4, "shared_expert_intermediate_size": 256},
    ),
    "sliding": ("gemma4-31b", {"layers": 6, "heads": 8, "kv_heads": 4}, {"num_global_key_value_heads": 1}),
    "sharing": (
        "gemma4-e2b", {"layers": 10, "sharing": 5},
        {"hidden_size_per_layer_input": 64, "vocab_size_per_layer_input": NARROW["vocabulary"]},
    ),
    "sharing on all rows": (
        "gemma4-e2b", {"layers": 10, "sharing": 5},
        {"hidden_size_per_layer_input": 64, "vocab_size_per_layer_input": NARROW["vocabulary"]},
    ),
    "latent": ("glm-4.7-flash", {"layers": 2}, {"n_routed_experts": 16, "moe_intermediate_size": 256}),
    "sliding with sinks": ("gpt-oss-20b", {"layers": 4, "heads": 8, "kv_heads": 1}, {"num_local_experts": 8}),
    "full": ("ministral3-14b", {"layers": 4, "heads": 8, "kv_heads": 2}, {}),
}  # fmt: skip
"""Kind -> the published shape, and what is smaller in it: of what all shapes state, and of the rest."""


def on_all_rows(model: Any, hidden: Any, inputs: Any, positions: Any, masks: Any, *more: Any, **named: Any) -> Any:
    """In place of transformers' choice of the rows that its sharing layers run on: all of them."""
    return hidden, inputs, positions, masks


def measured(kind: str, options: argparse.Namespace) -> dict[str, Any]:
    """Seconds of a prefill and milliseconds of a step of both, and ours over transformers'."""
    published, changes, more = KINDS[kind]
    shape = SHAPES[published]
    if kind == "sharing on all rows":
        from transformers.models.gemma4 import modeling_gemma4

        modeling_gemma4.Gemma4TextModel._maybe_slice_kv_shared_inputs = on_all_rows
    SHAPES[kind] = shape = replace(shape, **NARROW, **changes, more={**shape.more, **more})
    found = run_bench(
        BenchOptions(
            shape=kind, dtype="float32", device="cpu", contexts=(options.context,), indexes=(options.index,),
            budget=options.budget, steps=options.steps, baselines=("dense",),
        ),
        lambda line: print(line, file=sys.stderr, flush=True),
    )  # fmt: skip
    ours, theirs = (one["first_turn"] for one in found["rows"][0]["contestants"])
    figures: dict[str, Any] = {
        "kind": kind, "like": published, "layers": shape.layers, "weights_bytes": found["model"]["weights_bytes"],
        "logits_error": found["logits_error"]["float32"],
    }  # fmt: skip
    for name, key in (("prefill_s", "ttft_s"), ("decode_ms", "tpot_ms_p50")):
        figures[name] = {
            "stratakv": round(ours[key], 3), "transformers": round(theirs[key], 3),
            "share": round(ours[key] / theirs[key], 3),
        }  # fmt: skip
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kinds", default=",".join(KINDS))
    parser.add_argument("--context", type=int, default=8192)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--index", default="spectral")
    parser.add_argument("--budget", type=int, default=1024)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    from stratakv.runtime.process.hardware import hardware

    rows: list[dict[str, Any]] = []
    result: dict[str, Any] = {
        "command": f"python examples/bench/kinds.py --kinds '{options.kinds}' --context {options.context} --steps "
        f"{options.steps} --index {options.index} --budget {options.budget}",
        "commit": Build("now", HERE, HERE).commit,
        "hardware": hardware(),
        "rows": rows,
    }
    for kind in options.kinds.split(","):
        rows.append(measured(kind, options))
        write_result(result, options.out)  # each time: what is there is there


if __name__ == "__main__":
    main()
