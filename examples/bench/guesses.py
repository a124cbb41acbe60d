"""How well a layer's next reads can be guessed, and what reading a guess instead would cost.

    python examples/bench/guesses.py [--tokens 6000] [--steps 64] [--budget 1024] [--text FILE] [--out FILE]

The default model reads a text and is then fed its continuation. Of every step's selection (index `spectral`) in some
layers are recorded

    recall    the share that is in the last step's selection, and in two guesses 1.25 times as large: by the last step's
              query, and by the query that the layer would make of the input of the layer below
    misses    the share that a row cache of 1.5 selections lacks, the least lately used going first: without guesses,
              and when one of the two comes in before the step
    stale     KL to dense decoding if a head reads the last step's selection unless the mean cosine of its queries to
              the last step's is below tau (as FreeKV does, arXiv 2505.13109), beside always reading its own

No time is measured: the machine may be busy.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from stratakv.retrieval import Index, Selection
from stratakv.retrieval.indexes.spectral import SpectralIndex, SpectralState
from stratakv.runtime import KVConfig, Runtime
from stratakv.runtime.engine.engine import Engine
from stratakv.runtime.engine.sequence import Sequence
from stratakv.runtime.layers.lookahead import MORE
from stratakv.runtime.layers.paged import PagedLayer
from stratakv.runtime.layers.step import Step
from stratakv.runtime.model.step_tables import StepTables
from stratakv.runtime.process.hardware import hardware
from stratakv.storage.files.scratch import scratch_folder

ROOM = 1.5
TAUS = (0.95, 0.9, 0.8, 0.7, -1.0)
_WARM_UP = 12
_TEXT = Path(__file__).resolve().parent.parent / "northanger_abbey.txt"


class Watched(Engine):
    """Keeps the input of the layer below, which guesses are made of, and asks for what they would be."""

    def watch(self, sequence: Sequence, layers: list[int]) -> None:
        self.below: dict[int, tuple[Tensor, StepTables]] = {}
        self.last: dict[int, Tensor] = {}
        self.chosen: dict[int, list[np.ndarray]] = {layer: [] for layer in layers}
        self.guesses: dict[str, dict[int, list[np.ndarray]]] = {
            name: {layer: [] for layer in layers} for name in ("last step", "layer below")
        }
        for cache in sequence.layers:
            if isinstance(cache, PagedLayer) and cache.layer in layers:
                cache.watch = self._note

    def _look_ahead(self, sequences: list[Sequence], layer: int, hidden: Tensor, tables: StepTables) -> None:
        self.below[layer] = (hidden.clone(), tables)

    def _note(self, cache: PagedLayer, step: Step) -> None:
        assert step.ids is not None
        layer, query = cache.layer, step.query.float() * step.scale
        queries = {"last step": self.last.get(layer, query), "layer below": self.model.query(layer, *self.below[layer])}
        self.chosen[layer].append(step.ids)
        for name, like in queries.items():
            guess = cache.index.select(cache.state, like, cache.sealed, int(MORE * step.ids.shape[1]))
            self.guesses[name][layer].append(guess.ids.numpy())
        self.last[layer] = query


class Stale(SpectralIndex):
    """Of heads whose queries turned less than `tau`, the selection of the step before."""

    def __init__(self, like: Index, tau: float) -> None:
        super().__init__(like.params, like.layer, like.options)
        self.tau = tau
        self._last: tuple[Tensor, Tensor, int] | None = None

    def select(self, state: SpectralState, q: Tensor, num_tokens: int, budget: int) -> Selection:
        own, last = super().select(state, q, num_tokens, budget), self._last
        self._last = (q, own.ids, num_tokens)
        if last is None or last[2] != num_tokens:
            return own
        ids = last[1]
        if ids.shape[1] > own.ids.shape[1]:  # the tail has grown by the difference: that many fewer before the window
            cut, local = ids.shape[1] - own.ids.shape[1], self.params.local
            ids = torch.cat([ids[:, : -local - cut], ids[:, -local:]], 1)
        turned = F.cosine_similarity(q, last[0], dim=-1).mean(1) < self.tau
        return Selection(torch.where(turned.unsqueeze(1), own.ids, ids), 1)


def shares(chosen: list[np.ndarray], guesses: list[np.ndarray] | None) -> tuple[float, float]:
    """Recall of the guesses (of the selection before, if there are none) and misses of a row cache."""
    steps, (groups, count) = len(chosen), chosen[0].shape
    units = int(max(ids.max() for ids in chosen)) + 1
    room, recall, misses = int(ROOM * count), [], []
    for g in range(groups):
        last_use = np.full(units, -np.inf)
        for step in range(steps):
            ahead = guesses[step][g] if guesses else chosen[step - 1][g] if step else chosen[0][g]
            if guesses:
                last_use[ahead] = np.maximum(last_use[ahead], step - 0.5)
            order = np.argsort(-last_use, kind="stable")[:room]
            held = order[np.isfinite(last_use[order])]
            if step >= _WARM_UP:
                recall.append(np.isin(chosen[step][g], ahead).mean())
                misses.append(1 - np.isin(chosen[step][g], held).mean())
            last_use[chosen[step][g]] = step
    return float(np.mean(recall)), float(np.mean(misses))


def told(tokens: np.ndarray, continuation: np.ndarray, engine: Engine) -> Tensor:
    """Log-probabilities after each token of the continuation."""
    sequence = engine.new_sequence()
    engine.prefill(sequence, tokens, want_logits=False)
    logits = engine.decode_known(sequence, continuation)
    sequence.close()
    return logits.log_softmax(-1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=6000)
    parser.add_argument("--steps", type=int, default=64)
    parser.add_argument("--budget", type=int, default=1024)
    parser.add_argument("--layers", default="1,2,3,4,5,8,12,16,20,24,29")
    parser.add_argument("--text", type=Path, default=_TEXT)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    layers = [int(layer) for layer in args.layers.split(",")]
    result: dict[str, Any] = {"command": "python " + " ".join(sys.argv), "hardware": hardware(), "layers": {}}
    with scratch_folder("bench") as folder:
        kv = KVConfig(path=folder, index="spectral", budget=args.budget)
        with Runtime.load("smollm2", kv=kv) as runtime:
            ids = runtime.tokenizer(args.text.read_text(encoding="utf-8"), add_special_tokens=False).input_ids
            text = np.array(ids[: args.tokens + args.steps], dtype=np.uint32)
            tokens, continuation = text[: args.tokens], text[args.tokens :]
            own = runtime.engine
            parts = own.model, own.store
            watched = Watched(*parts, list(own.indexes.values()), kv, own.workspace, own.chunk)
            sequence = watched.new_sequence()
            watched.prefill(sequence, tokens, want_logits=False)
            watched.watch(sequence, layers)
            for token in continuation.tolist():
                watched.decode([sequence], [token])
            sequence.close()
            for layer in layers:
                chosen = watched.chosen[layer]
                found = {"last selection": shares(chosen, None)}
                found |= {name: shares(chosen, guesses[layer]) for name, guesses in watched.guesses.items()}
                result["layers"][layer] = {
                    name: {"recall": recall, "misses": misses} for name, (recall, misses) in found.items()
                }
                print(f"layer {layer:>2}", *(f"{n}: recall {r:.3f}, misses {m:.3f};" for n, (r, m) in found.items()))
            dense = told(tokens, continuation, runtime.reading(KVConfig(path=folder, index="dense")))
            result["stale"] = {}
            for tau in (None, *TAUS):
                indexes = [index if tau is None else Stale(index, tau) for index in own.indexes.values()]
                logs = told(tokens, continuation, Engine(*parts, indexes, kv, own.workspace, own.chunk))
                kl = (dense.exp() * (dense - logs)).sum(-1)
                result["stale"]["own" if tau is None else str(tau)] = {
                    "kl_mean": float(kl.mean()), "kl_median": float(kl.median())
                }  # fmt: skip
                print(f"tau {tau}: KL {kl.mean():.5f}, median {kl.median():.5f}")
    if args.out is not None:
        args.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
