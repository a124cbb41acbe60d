"""Where the time of one decode step goes, over the context, and what making its parts leaner gains.

    python examples/bench/decode_floor.py [--contexts 1024,8192,32768] [--index spectral,bounds] [--dense] [--kl 256]

Every round takes one step of each way at each context, in turn: with our lean layers (`runtime/model/lean_layer.py`),
with the modules they are made of and with weights of 8 bits; with `--dense` also transformers' dense model (SDPA).
Times are medians of wall clock, and of the calling thread's own time, which a busy machine disturbs less; with more
than one thread only the former counts all work.

The KV is drawn, not a model's, so that no prompt need be read, and so are `spectral`'s codes: the time of a look-up
does not depend on what is looked up. Contexts may exceed the model's window for the same reason. First, lean layers
must give the modules' logits on the shortest context, else no time is reported.

`--plain` times decode as it is and nothing else, which also runs on revisions before lean layers.

`--kl N` compares the predictions of 8-bit weights with the model's own over N tokens of the bundled text, read in full.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from builds import write_result
from torch import Tensor

from stratakv.kernels.decode_attention import decode_attention
from stratakv.retrieval.indexes.spectral import SpectralIndex
from stratakv.runtime import KVConfig, Runtime
from stratakv.runtime.chat.documents import read_text_file
from stratakv.runtime.engine.engine import Engine
from stratakv.runtime.engine.sequence import PROMPT, Sequence
from stratakv.runtime.layers.tiered import TieredLayer
from stratakv.runtime.process.hardware import hardware
from stratakv.storage.files.scratch import scratch_folder

_WARM_UP = 3
_TOLERANCE = 5e-2
"""Of the largest logit, in bf16: the two round at other places."""
_FITTED, _SPAN = 1024, 2048
TEXT = Path(__file__).resolve().parent.parent / "northanger_abbey.txt"


def fill(engine: Engine, length: int, like: Sequence | None = None) -> Sequence:
    """A sequence of `length` tokens with drawn KV; over the pages of `like`, if given."""
    draw, sequence = torch.Generator().manual_seed(length), engine.new_sequence()
    tokens = np.arange(length, dtype=np.uint32) % 1000 + length  # the contexts share no page
    noise = torch.randn(2, engine.model.num_kv_heads, _SPAN, engine.model.head_dim, generator=draw)
    for start in range(0, length, _SPAN):
        some = tokens[start : start + _SPAN]
        named = sequence.name_pages(some, PROMPT)
        with engine.turns.taken():
            for layer in tiered(sequence) if like is None else []:
                layer.begin()
                layer.span.rows(0, len(some))[:] = noise[:, :, torch.randperm(_SPAN, generator=draw)[: len(some)]]
                layer.finish(named.chains, named.tokens, len(some))
        sequence.commit(named)
    for layer, other in zip(tiered(sequence), tiered(like or sequence), strict=True):
        if like is not None:
            layer.store.retain(other.pids)
            layer.pages.pids = other.pids
        if isinstance(layer.index, SpectralIndex):
            layer.upkeep.state, layer.upkeep.indexed = codes(layer.index, noise[0], length, draw), length
        layer.end_prefill()
    return sequence


def codes(index: SpectralIndex, keys: Tensor, length: int, draw: torch.Generator) -> Any:
    """A state fitted on a few keys, with drawn codes and anchors for all `length` tokens."""
    groups, _, dim = keys.shape
    tensors = index.export(index.build(keys[:, :_FITTED]))
    shape = (groups, length, tensors["codes"].shape[2])
    tensors["codes"] = torch.randint(0, 256, shape, dtype=torch.uint8, generator=draw)
    tensors["anchors"] = torch.randn(groups, -(-length // index.options.segment), dim, generator=draw).bfloat16()
    tensors["facts"] = torch.tensor([length, 1000.0, 0.0, 1.0, 1.0], dtype=torch.float64)  # not outgrown soon
    return index.restore(tensors)


def tiered(sequence: Sequence) -> list[TieredLayer]:
    return [layer for layer in sequence.layers if isinstance(layer, TieredLayer)]


class Clock:
    """Times of a call, in milliseconds: wall clock and the calling thread's own."""

    def __init__(self) -> None:
        self.wall: list[float] = []
        self.thread: list[float] = []

    def time(self, call: Callable[[], Any]) -> Any:
        wall, thread = time.perf_counter(), time.thread_time()
        found = call()
        self.thread.append(1e3 * (time.thread_time() - thread))
        self.wall.append(1e3 * (time.perf_counter() - wall))
        return found

    def result(self) -> dict[str, float]:
        wall = sorted(self.wall[_WARM_UP:])
        return {
            "ms": statistics.median(wall),
            "ms_p10": wall[len(wall) // 10],
            "thread_ms": statistics.median(self.thread[_WARM_UP:]),
        }


class Ways:
    """What decode multiplies with, switched in place: both kinds of products are made once."""

    def __init__(self, runtime: Runtime) -> None:
        model = self.model = runtime.model
        self._kept: dict[str, tuple[list[Any], Any]] = {}
        for weights in ("int8", "own"):
            model.use_weights(weights)
            self._kept["lean" if weights == "own" else weights] = model.halves, model.step_logits
        self._kept["modules"] = [None] * model.num_layers, model.step_logits

    def use(self, way: str) -> None:
        self.model.halves, self.model.step_logits = self._kept[way]


class Dense:
    """transformers' own model over drawn KV: SDPA attention, DynamicCache."""

    def __init__(self, runtime: Runtime, length: int, model: Any) -> None:
        from transformers import DynamicCache

        ours, self.model, self.length = runtime.model, model, length
        self.cache = DynamicCache(config=model.config)
        shape = (1, ours.num_kv_heads, length, ours.head_dim)
        for layer in range(ours.num_layers):
            self.cache.update(torch.randn(shape).to(ours.dtype), torch.randn(shape).to(ours.dtype), layer)

    @torch.inference_mode()
    def step(self) -> None:
        self.model(torch.tensor([[5]]), past_key_values=self.cache, logits_to_keep=1)


def parts(engine: Engine, sequence: Sequence, rounds: int) -> dict[str, dict[str, float]]:
    """What a step spends in each part, each timed over all layers in turn, as a step meets them."""
    model, layers = engine.model, tiered(sequence)
    budget = engine.config.budget_tokens(sequence.num_tokens)
    query = torch.randn(model.num_kv_heads, model.num_heads // model.num_kv_heads, model.head_dim).to(model.dtype)
    hidden = torch.randn(1, model.config.hidden_size).to(model.dtype)
    chosen: dict[int, Any] = {}
    gathered: list[Any] = [None]

    def select(layer: TieredLayer) -> None:
        left = budget - layer.tail_len
        chosen[layer.layer] = layer.index.select(layer.state, query.float() * 0.125, layer.sealed, left)

    def read(layer: TieredLayer) -> None:
        layer.reader.begin_step(None)
        gathered[0] = layer.reader.keys_values(chosen[layer.layer].ids, chosen[layer.layer].unit)

    def attend(layer: TieredLayer) -> None:
        decode_attention(query, [gathered[0], layer.tail], scale=0.125)

    def over(call: Callable[[TieredLayer], None]) -> Callable[[], Any]:
        def each() -> None:
            for layer in layers:
                call(layer)

        return each

    def products() -> None:
        state, tables = hidden, model.step_tables([sequence.num_tokens])
        for layer in range(model.num_layers):
            state = model.step_layer(layer, state, tables, lambda at, q, k, v, scale: q)

    calls: dict[str, Callable[[], Any]] = {
        "select": over(select), "read": over(read), "attend": over(attend), "layers": products,
        "head": lambda: model.step_logits(hidden).float(),
    }  # fmt: skip
    clocks = {name: Clock() for name in calls}
    for _ in range(rounds + _WARM_UP):
        for name, call in calls.items():
            clocks[name].time(call)
    return {name: clock.result() for name, clock in clocks.items()}


def check(engine: Engine, ways: Ways, sequence: Sequence) -> float:
    """The largest difference of logits between lean layers and modules. Raises RuntimeError if it is too large."""
    found = []
    for way in ("modules", "lean"):
        ways.use(way)
        twin = engine.fork(sequence)
        found.append(engine.decode([twin], [5])[0])
        twin.close()
    worst = float((found[1] - found[0]).abs().max() / found[0].abs().max())
    if worst > _TOLERANCE:
        raise RuntimeError(f"lean layers differ from the modules by {worst:.1e} of the logits: no time is reported")
    return worst


def divergence(runtime: Runtime, ways: Ways, count: int) -> dict[str, float]:
    """Of 8-bit weights from the model's own, over `count` tokens of the bundled text that both are given."""
    ids = np.array(runtime.tokenizer(read_text_file(TEXT)[:40_000]).input_ids[: 256 + count], dtype=np.uint32)
    engine = runtime.reading(KVConfig(index="dense"))
    logits = {}
    for way in ("lean", "int8", "modules"):
        ways.use(way)
        sequence = engine.new_sequence()
        engine.prefill(sequence, ids[:256], want_logits=False, reuse=False)
        rows = [engine.decode([sequence], [int(token)])[0] for token in ids[256:]]
        logits[way] = torch.log_softmax(torch.stack(rows).double(), -1)
        sequence.close()
    own = logits["lean"]
    found: dict[str, float] = {}
    for way in ("int8", "modules"):
        kl = (own.exp() * (own - logits[way])).sum(-1)
        same = (own.argmax(-1) == logits[way].argmax(-1)).double().mean()
        found |= {f"kl_{way}": float(kl.mean()), f"kl_{way}_p99": float(kl.quantile(0.99)), f"top1_{way}": float(same)}
    return {"tokens": count, **found}


def filled(engines: dict[str, Engine], contexts: list[int]) -> dict[tuple[str, int], Sequence]:
    sequences = {}
    for context in contexts:
        first = None
        for name, engine in engines.items():
            sequences[name, context] = first = fill(engine, context, first)
            print(f"{name}: {context} tokens", file=sys.stderr)
    return sequences


def plain(runtime: Runtime, names: list[str], contexts: list[int], budget: int, rounds: int) -> dict[str, Any]:
    engines = {name: runtime.reading(KVConfig(index=name, budget=budget)) for name in names}
    sequences = filled(engines, contexts)
    clocks = {key: Clock() for key in sequences}
    for _ in range(rounds + _WARM_UP):
        for (name, context), sequence in sequences.items():
            clocks[name, context].time(partial(engines[name].decode, [sequence], [5]))
    return {"rows": [{"index": name, "context": at, **clock.result()} for (name, at), clock in clocks.items()]}


def measure(runtime: Runtime, names: list[str], contexts: list[int], budget: int, rounds: int, dense: bool) -> Any:
    engines = {name: runtime.reading(KVConfig(index=name, budget=budget)) for name in names}
    ways, sequences = Ways(runtime), filled(engines, contexts)
    worst = check(engines[names[0]], ways, sequences[names[0], contexts[0]])
    model = others = None
    if dense:
        from transformers import AutoModelForCausalLM

        model = AutoModelForCausalLM.from_pretrained(
            runtime.model.hf.config._name_or_path, dtype=runtime.model.dtype, attn_implementation="sdpa"
        ).eval()
        others = {context: Dense(runtime, context, model) for context in contexts}
    clocks: dict[tuple[str, str, int], Clock] = {}
    for _ in range(rounds + _WARM_UP):
        for (name, context), sequence in sequences.items():
            for way in ("lean", "modules", "int8"):
                ways.use(way)
                clock = clocks.setdefault((name, way, context), Clock())
                clock.time(partial(engines[name].decode, [sequence], [5]))
        for context, other in (others or {}).items():
            clocks.setdefault(("dense", "transformers", context), Clock()).time(other.step)
    ways.use("lean")
    rows = []
    for (name, way, context), clock in clocks.items():
        row = {"index": name, "layers": way, "context": context, **clock.result()}
        rows.append(row)
        print(f"{name:>9} {way:>12} {context:6}: {row['ms']:6.1f} ms, thread {row['thread_ms']:6.1f}", file=sys.stderr)
    with torch.inference_mode():
        split = [
            {"index": name, "context": context, **parts(engines[name], sequence, rounds)}
            for (name, context), sequence in sequences.items()
        ]
    return {"logits_error": worst, "rows": rows, "parts": split}, ways


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--contexts", default="1024,8192,16384,32768", help="comma-separated, whole pages")
    parser.add_argument("--index", default="spectral,bounds", help="comma-separated")
    parser.add_argument("--budget", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--threads", type=int, help="default: PyTorch's")
    parser.add_argument("--dense", action="store_true", help="transformers' dense model beside ours")
    parser.add_argument("--kl", type=int, default=0, metavar="N", help="tokens over which 8-bit weights are compared")
    parser.add_argument("--plain", action="store_true", help="decode as it is, nothing beside it")
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    if asked.threads:
        torch.set_num_threads(asked.threads)
    contexts = [int(context) for context in asked.contexts.split(",")]
    with scratch_folder("bench") as folder:
        kv = KVConfig(path=folder, disk_gb=0, index="window")
        with Runtime.load(asked.model, device="cpu", dtype="bfloat16", kv=kv) as runtime:
            names = asked.index.split(",")
            if asked.plain:
                found = plain(runtime, names, contexts, asked.budget, asked.rounds)
            else:
                found, ways = measure(runtime, names, contexts, asked.budget, asked.rounds, asked.dense)
                if asked.kl:
                    with torch.inference_mode():
                        found["weights_int8"] = divergence(runtime, ways, asked.kl)
    result = {
        "command": "python " + " ".join(sys.argv),
        "hardware": {**hardware(), "load_average": os.getloadavg()[0]},
        "model": asked.model,
        "budget": asked.budget,
        "rounds": asked.rounds,
        **found,
    }
    write_result(result, asked.out)


if __name__ == "__main__":
    main()
