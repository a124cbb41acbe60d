"""A decode step on a CPU beside an earlier build, llama.cpp and transformers: the same contexts, taking turns.

    python examples/bench/step_peers.py [--before CHECKOUT] [--model MODEL] [--contexts 1024,8192] [--batches 1,4]
        [--weights own,int8,file] [--indexes bounds,spectral] [--rounds 8]
        [--ours-most 32768] [--llama-most 8192] [--transformers-most 8192] [--out OUT.json]

Correctness first: on a real text, each contestant's next-token distributions against transformers' in fp32. Then, for
each context and batch, every contestant has its sequences ready in a process of its own, and they take turns, a second
or so each, whose first half is not counted; a figure is the median over turns of the median step in each. Our contexts
are random keys and values; llama.cpp and transformers, which offer no way to write into their caches, read tokens, the
first up to `--llama-most`, the other up to `--transformers-most` tokens. Ours hold up to `--ours-most` tokens, those of
a batch together. Nothing is set in the processes' environments.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from builds import Build, make_builds, write_result
from busy import ask

TEXT = Path(__file__).resolve().parent.parent / "northanger_abbey.txt"
BUDGET, CHECKED, KNOWN, STEPS = 1024, 1200, 16, 8
SETTLES_S = 0.6
"""Seconds of each turn that are not counted. A program that fits its threads to what else runs (ours does, by windows
of a fifth of a second) still has as few as beside whoever had the turn before."""
CLOSE = 0.1
"""Mean KL, in nats, of a contestant that reads a part of the text; more means that it computes something else."""


def some_tokens(count: int) -> Any:
    import numpy as np

    return np.random.default_rng(count).integers(100, 40_000, count).astype(np.uint32)


class Side(Protocol):
    """What takes steps, in a process of its own."""

    def __init__(self, model: str, settings: dict[str, str], store: str) -> None: ...
    def logits(self, ids: Any) -> Any:
        """Logits `[KNOWN, V]` after each of the last tokens of a text."""

    def open(self, context: int, batch: int) -> None: ...
    def step(self, token: int) -> None: ...
    def close(self) -> None: ...


class Ours:
    """A build of ours. Settings: `weights`, `index`."""

    def __init__(self, model: str, settings: dict[str, str], store: str) -> None:
        from stratakv.runtime import KVConfig, Runtime

        kv = KVConfig(path=store, disk_gb=0, host_gb=8, index=settings["index"], budget=BUDGET)
        self.runtime = Runtime.load(model, device="cpu", weights=settings["weights"], kv=kv)
        self.sequences: list[Any] = []

    def logits(self, ids: Any) -> Any:
        import torch

        engine = self.runtime.engine
        sequence = engine.new_sequence()
        engine.prefill(sequence, ids[:CHECKED])
        found = [engine.decode([sequence], [int(token)])[0] for token in ids[CHECKED : CHECKED + KNOWN]]
        sequence.close()
        return torch.stack(found)

    def open(self, context: int, batch: int) -> None:
        from stratakv.runtime.bench.random_kv import fill_sequence

        self.sequences = [self.runtime.engine.new_sequence() for _ in range(batch)]
        for number, sequence in enumerate(self.sequences):
            fill_sequence(self.runtime.engine, sequence, some_tokens(context), number)

    def step(self, token: int) -> None:
        self.runtime.engine.decode(self.sequences, [token] * len(self.sequences))

    def close(self) -> None:
        for sequence in self.sequences:
            sequence.close()


class LlamaCpp:
    """llama.cpp. Settings: `kv`, the type of its cache."""

    def __init__(self, model: str, settings: dict[str, str], store: str) -> None:
        import torch

        self.path, self.kv, self.threads = Path(model), settings["kv"], torch.get_num_threads()

    def _model(self, context: int) -> Any:
        from stratakv.runtime.bench.llama_c import LlamaModel

        return LlamaModel(self.path, context=context, threads=self.threads, kv=self.kv, flash=True)

    def logits(self, ids: Any) -> Any:
        import torch

        llama = self._model(CHECKED + KNOWN + 1)
        llama.extend(ids[:CHECKED])
        found = [torch.tensor(llama.extend(ids[n : n + 1])[0]) for n in range(CHECKED, CHECKED + KNOWN)]
        llama.close()
        return torch.stack(found)

    def open(self, context: int, batch: int) -> None:
        self.llama = self._model(context + 1024)
        self.llama.extend(some_tokens(context))

    def step(self, token: int) -> None:
        import numpy as np

        self.llama.extend(np.array([token]))

    def close(self) -> None:
        self.llama.close()


class Transformers:
    """transformers' own loop over its dynamic cache. Settings: `dtype`."""

    def __init__(self, model: str, settings: dict[str, str], store: str) -> None:
        import torch
        from transformers import AutoModelForCausalLM

        from stratakv.runtime.model.locate import locate

        folder = locate(model, settings["dtype"], on_convert=lambda name: None)
        self.model = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, settings["dtype"]))
        self.batch, self.past = 1, None

    def _next(self, ids: Any) -> Any:
        import torch

        with torch.inference_mode():
            done = self.model(
                torch.tensor(ids.astype("int64")).expand(self.batch, -1), past_key_values=self.past, use_cache=True,
                logits_to_keep=1,
            )  # fmt: skip
        self.past = done.past_key_values
        return done.logits[:, -1].float()

    def open(self, context: int, batch: int) -> None:
        self.batch, self.past = batch, None
        for begin in range(0, context, 512):
            self._next(some_tokens(context)[begin : begin + 512])

    def logits(self, ids: Any) -> Any:
        import torch

        self.batch, self.past = 1, None
        self._next(ids[:CHECKED])
        return torch.cat([self._next(ids[n : n + 1]) for n in range(CHECKED, CHECKED + KNOWN)])

    def step(self, token: int) -> None:
        import numpy as np

        self._next(np.array([token]))

    def close(self) -> None:
        self.past = None


KINDS: dict[str, type[Side]] = {"ours": Ours, "llama.cpp": LlamaCpp, "transformers": Transformers}


def serve(kind: str, model: str, settings: dict[str, str], store: str) -> None:
    """Do what comes in, a JSON list a line, and answer in JSON."""
    import numpy as np

    contestant = KINDS[kind](model, settings, store)
    print("{}", flush=True)
    for line in sys.stdin:
        what, *of = json.loads(line)
        answer: Any = {}
        if what == "logits":
            np.save(of[1], contestant.logits(np.array(of[0], dtype=np.uint32)).numpy())
        elif what == "open":
            contestant.open(*of)
        elif what == "close":
            contestant.close()
        else:
            times, begun, ready = list[float](), time.perf_counter(), 0
            while ready < STEPS:
                started = time.perf_counter()
                contestant.step(200)
                times.append(1e3 * (time.perf_counter() - started))
                ready += started - begun > SETTLES_S
            answer = {"ms": statistics.median(times[-STEPS:])}
        print(json.dumps(answer), flush=True)


class Entry(NamedTuple):
    """Who takes part."""

    name: str
    build: Build
    kind: str
    model: str
    settings: dict[str, str]


class Contestant:
    """A process that serves."""

    def __init__(self, entry: Entry, scratch: Path) -> None:
        self.name, self.kind = entry.name, entry.kind
        store = str(scratch / entry.name.replace(" ", "-"))
        self._process = entry.build.start(
            __file__, "--serve", entry.kind, entry.model, json.dumps(entry.settings), store
        )
        self.ask()

    def ask(self, *what: Any) -> dict[str, Any]:
        return ask(self._process, json.dumps(what) if what else None)

    def takes(self, context: int, batch: int, options: argparse.Namespace) -> bool:
        if self.kind == "llama.cpp":
            return batch == 1 and context <= options.llama_most
        most: int = options.ours_most if self.kind == "ours" else options.transformers_most
        return context * batch <= most

    def end(self) -> None:
        self._process.kill()
        self._process.wait()


def contestants(index: str, builds: list[Build], options: argparse.Namespace) -> Iterator[Entry]:
    """Those that are measured for one index."""
    for build in builds:
        for weights in options.weights.split(","):
            if build.name == "now" or weights in ("own", "int8"):
                settings = {"weights": weights, "index": index}
                yield Entry(f"{build.name} {weights}", build, "ours", options.model, settings)
    if index != options.indexes.split(",")[0]:
        return  # the others have no index
    for kv in ("f16", "q8_0") if options.gguf else ():
        yield Entry(f"llama.cpp {kv}", builds[-1], "llama.cpp", options.gguf, {"kv": kv})
    if options.transformers_most:
        yield Entry("transformers bf16", builds[-1], "transformers", options.model, {"dtype": "bfloat16"})


def kl(expected: Any, found: Any) -> float:
    """Mean KL of next-token distributions, in nats."""
    import torch

    p, q = (torch.log_softmax(torch.tensor(logits).double(), -1) for logits in (expected, found))
    return float((p.exp() * (p - q)).sum(-1).mean())


def checked(all_of: list[Contestant], options: argparse.Namespace, build: Build, scratch: Path) -> dict[str, float]:
    """Mean KL of each from transformers in fp32."""
    import numpy as np
    from transformers import AutoTokenizer

    from stratakv.runtime.model.locate import locate

    folder = locate(options.model, "float32", on_convert=lambda name: None)
    ids = AutoTokenizer.from_pretrained(folder)(TEXT.read_text()).input_ids[: CHECKED + KNOWN]
    reference = Contestant(Entry("reference", build, "transformers", options.model, {"dtype": "float32"}), scratch)
    found = {}
    for one in (reference, *all_of):
        one.ask("logits", ids, str(scratch / "logits.npy"))
        found[one.name] = np.load(scratch / "logits.npy")
    reference.end()
    far = {one.name: round(kl(found["reference"], found[one.name]), 6) for one in all_of}
    print(json.dumps(far), file=sys.stderr)
    if wrong := {name: value for name, value in far.items() if not value <= CLOSE}:
        raise SystemExit(f"mean KL above {CLOSE}: {wrong}; no time is reported")
    return far


def measured(all_of: list[Contestant], context: int, batch: int, rounds: int) -> dict[str, float]:
    """Milliseconds a step of each."""
    times: dict[str, list[float]] = {one.name: [] for one in all_of}
    for one in all_of:
        one.ask("open", context, batch)
        one.ask("steps")  # warms up
    for number in range(rounds):
        for one in all_of if number % 2 else reversed(all_of):
            times[one.name].append(one.ask("steps")["ms"])
    for one in all_of:
        one.ask("close")
    return {name: round(statistics.median(each), 2) for name, each in times.items()}


def main() -> None:
    if sys.argv[1:2] == ["--serve"]:
        kind, model, settings, store = sys.argv[2:]
        serve(kind, model, json.loads(settings), store)
        return
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--before", type=Path, help="another checkout")
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--gguf", default="", help="the file that llama.cpp reads; without it llama.cpp is left out")
    parser.add_argument("--contexts", default="1024,8192,16384,32768")
    parser.add_argument("--batches", default="1")
    parser.add_argument("--weights", default="own,int8,file")
    parser.add_argument("--indexes", default="bounds,spectral")
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--ours-most", type=int, default=32768)
    parser.add_argument("--llama-most", type=int, default=8192)
    parser.add_argument("--transformers-most", type=int, default=8192)
    parser.add_argument("--unchecked", action="store_true", help="weights are random: nothing is checked")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    from stratakv.runtime.process.hardware import hardware

    steps: list[dict[str, Any]] = []
    result: dict[str, Any] = {"command": " ".join(_command(options)), "hardware": hardware(), "budget": BUDGET}
    result |= {"rounds": options.rounds, "kl": {}, "steps": steps}
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        builds = make_builds(options.before, scratch / "builds")
        result["commits"] = {build.name: build.commit for build in builds}
        for index in options.indexes.split(","):
            with ExitStack() as stack:
                all_of = []
                for entry in contestants(index, builds, options):
                    all_of.append(Contestant(entry, scratch))
                    stack.callback(all_of[-1].end)
                if not options.unchecked:
                    result["kl"][index] = checked(all_of, options, builds[-1], scratch)
                for context in map(int, options.contexts.split(",")):
                    for batch in map(int, options.batches.split(",")):
                        here = [one for one in all_of if one.takes(context, batch, options)]
                        if not here:
                            continue
                        row = {"index": index, "context": context, "batch": batch}
                        steps.append(row | {"ms": measured(here, context, batch, options.rounds)})
                        print(json.dumps(steps[-1]), file=sys.stderr, flush=True)
    write_result(result, options.out)


def _command(options: argparse.Namespace) -> Iterator[str]:
    """What was asked, without paths of this machine."""
    yield "python examples/bench/step_peers.py"
    for name in ("contexts", "batches", "weights", "indexes", "rounds"):
        yield f"--{name} {getattr(options, name)}"
    if options.before is not None:
        yield "--before CHECKOUT"
    for name in ("model", "gguf"):
        if value := getattr(options, name):
            yield f"--{name} {os.path.basename(value)}"
    yield f"--ours-most {options.ours_most} --llama-most {options.llama_most}"
    yield f"--transformers-most {options.transformers_most}"


if __name__ == "__main__":
    main()
