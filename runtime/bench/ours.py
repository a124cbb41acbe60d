"""stratakv: one index under one set of caps, with a store of its own."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from ...storage import Counters, TieredStore
from ...storage.files.scratch import scratch_folder
from ..api.figures import ratio
from ..chat.runtime import Runtime
from ..engine.engine import Engine
from ..engine.sequence import Sequence
from ..layers.paged import paged_layers
from ..layers.tiered import TieredLayer, tiered_layers
from ..process import compiled
from .bandwidths import Bandwidths
from .breakdown import summary, total_only
from .contestant import Contestant, TimedTurn
from .options import BenchOptions, Caps
from .random_kv import fill_sequence
from .roofline import Traffic
from .slow_links import slow_down
from .subject import Subject

if TYPE_CHECKING:
    from .timed_team import TimedTeam


class Ours(Contestant):
    """stratakv as a contestant. Raises what `check_room` and `Runtime.load` raise.

    Args:
        tokens: number of tokens of every sequence, over both turns.
    """

    def __init__(
        self, subject: Subject, options: BenchOptions, index: str, caps: Caps, batch: int, tokens: int,
        bandwidths: Bandwidths, *, prefetch: str = "auto", weights: str = "own",
    ) -> None:  # fmt: skip
        super().__init__(batch, {"index": index, "weights": weights, "caps": caps.given(), "prefetch": prefetch})
        marks = [mark for mark in ("" if weights == "own" else weights, str(caps), _MARKS[prefetch]) if mark]
        self.name = f"stratakv {index}" + (f" ({', '.join(marks)})" if marks else "")
        self._subject, self._bandwidths = subject, bandwidths
        with ExitStack() as stack:
            folder = stack.enter_context(scratch_folder("bench", options.kv_dir))
            kv = options.kv(folder, index, caps, prefetch=prefetch)
            runtime = stack.enter_context(subject.runtime(kv, subject.with_weights(weights)))
            check_room(runtime, options, batch, tokens)
            slow_down(runtime.store.links, options.link_gbps, options.disk_gbps)
            self.runtime: Runtime = runtime
            self.sequences = [runtime.engine.new_sequence() for _ in range(batch)]
            self._exit = stack.pop_all()
        self._before, self._moved = Counters(), Counters()
        self._busy_before = self._busy_s = 0.0
        self._kv_bytes: list[int] = []
        self._has_breakdown = options.breakdown
        self._timed = timed_team(runtime.engine) if options.breakdown else None

    def extend(self, prompts: np.ndarray) -> None:
        for sequence, prompt in zip(self.sequences, prompts, strict=True):
            logits = self.runtime.engine.prefill(sequence, prompt, reuse=False).logits
            assert logits is not None
            logits.argmax().item()

    def fill(self, prompts: np.ndarray) -> None:
        for number, (sequence, prompt) in enumerate(zip(self.sequences, prompts, strict=True)):
            fill_sequence(self.runtime.engine, sequence, prompt, seed=number)
        if self.runtime.store.disk is not None:
            self.runtime.store.flush()  # a prefill takes so long that most is written by its end

    def decode(self, tokens: list[int]) -> None:
        self.runtime.engine.decode(self.sequences, tokens).argmax(-1).tolist()

    def begin_turn(self, prompts: np.ndarray, *, random_kv: bool) -> None:
        super().begin_turn(prompts, random_kv=random_kv)
        self._moved, self._busy_s, self._kv_bytes = Counters(), 0.0, []

    def on_stint(self) -> None:
        store = self._counted()
        self._before, self._busy_before = replace(store.counters), store.links.busy_s
        if self._timed is not None:
            self._timed.begin()

    def on_step(self, began: float) -> None:
        if self._timed is not None:
            self._timed.end(began, self.turns[-1].step_s[-1])
        read = sum(cache.tokens_read for cache in _tiered(self.sequences))
        self._kv_bytes.append(read * self.runtime.store.layout.token_bytes)

    def _counted(self) -> TieredStore:
        """The store, whose counters have what a device has read by itself as well."""
        for layer in paged_layers(layer for sequence in self.sequences for layer in sequence.layers):
            layer.reader.count()
        return self.runtime.store

    def on_stint_end(self) -> None:
        store = self._counted()
        self._moved.add(**store.counters.since(self._before).as_dict())
        self._busy_s += store.links.busy_s - self._busy_before

    def facts(self, turn: TimedTurn) -> dict[str, Any]:
        moved, steps = self._moved, len(turn.step_s)
        counters = {**moved.as_dict(), "transfer_s": self._busy_s}
        traffic = Traffic(
            weights=self._subject.read_by(self.runtime.model), kv=float(np.mean(self._kv_bytes)),
            index=self._index_bytes, link=moved.host_to_gpu_bytes / steps, disk=moved.disk_to_host_bytes / steps,
        )  # fmt: skip
        waited = ratio(moved.stall_s, self._busy_s)
        return {
            "tokens_read": self.runtime.engine.tokens_read,
            "counters": counters,
            "bytes_per_step": {name: counters[name] / steps for name in counters if name.endswith("_bytes")},
            "hit_rate": moved.hit_rate,
            "device_hit_rate": None if self.runtime.store.gpu is None else moved.device_hit_rate,
            "row_hit_rate": moved.row_hit_rate,
            "stall_share": ratio(moved.stall_s, turn.decode_s),
            "hidden_share": None if waited is None else max(0.0, 1 - waited),
            "roofline": traffic.against(self._bandwidths, turn.decode_s / steps),
            **self._breakdown(turn),
        }

    @property
    def _index_bytes(self) -> int:
        """Bytes that indexes read in a step that chooses: what ranks units, or where nothing is known of that all that
        they keep."""
        indexes, found = self.runtime.engine.indexes, 0
        for layer in _tiered(self.sequences):
            if layer.indexed and layer.step_budget < layer.sealed:
                index, ranking = indexes[layer.layer], indexes[layer.layer].ranking(layer.state)
                reads = index.state_bytes(layer.state) if ranking is None else sum(t.nbytes for t in ranking.reads)
                found += reads
        return found

    def _breakdown(self, turn: TimedTurn) -> dict[str, Any]:
        if not self._has_breakdown:
            return {}
        if self._timed is None:
            return {"breakdown": total_only(turn.step_s)}
        return {"breakdown": summary(self._timed.take(), self._bandwidths.memory)}

    def summary(self) -> dict[str, Any]:
        engine = self.runtime.engine
        states = sum(engine.indexes[c.layer].state_bytes(c.state) for c in _tiered(self.sequences) if c.indexed)
        return {"tiers": self.runtime.stats()["tiers"], "index_bytes": states}

    def close(self) -> None:
        for sequence in self.sequences:
            sequence.close()
        self._exit.close()


def timed_team(engine: Engine) -> TimedTeam | None:
    """Have steps worked through by a team that notes what operations take; None where PyTorch computes them."""
    if engine.compiled is None:
        return None
    from ..engine.compiled_step import CompiledStep
    from .timed_team import TimedTeam

    counters = engine.store.counters
    team = TimedTeam(compiled.team(), lambda: counters.stall_s)
    engine.compiled = CompiledStep(engine.model, engine.store, team)
    return team


_MARKS = {"auto": "", "on": "prefetch", "off": "no prefetch"}


def check_room(runtime: Runtime, options: BenchOptions, batch: int, tokens: int) -> None:
    """Raise DoesNotFitError unless the window (which random KV may exceed) and the tiers hold such a batch."""
    if not options.random_kv:
        runtime.check_fits(0, tokens, f"a context of {tokens} tokens")
    runtime.plan.check(batch * tokens, f"{batch} x {tokens} tokens")


def _tiered(sequences: list[Sequence]) -> list[TieredLayer]:
    return [layer for sequence in sequences for layer in tiered_layers(sequence.layers)]
