"""One model, one prefill per context, and every variant reading from a fork of it.

dense prefill, queries kept  ->  per index or placement, a fork that builds its states  ->  per variant, a fork that
copies them, and keeps of the text what its placement does
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
from torch import Tensor

from ..chat.runtime import Runtime
from ..engine.engine import Engine
from ..engine.sequence import Sequence
from ..layers.tiered import tiered_layers
from ..model.template import Template, as_array
from .probe import Probe
from .variants import DENSE, Variant


class Harness:
    """Engines for all variants over one runtime's model and store.

    Args:
        question: `sparse` to read questions the way replies are read, through the index (the stricter protocol);
            otherwise they are read exactly, as `Chat.send` does, unless a prompt has them already.
    """

    def __init__(self, runtime: Runtime, variants: list[Variant], *, question: str = "sparse") -> None:
        self.runtime, self.variants, self.asks = runtime, variants, question
        self._prefilling = runtime.reading(replace(runtime.config, index=DENSE))
        self.engines = _engines(runtime, variants)
        self._judges = any(one.rows for engine in self.engines.values() for one in engine.placements.values())
        self._learns = self._judges or any(
            index.uses_queries for engine in self.engines.values() for index in engine.indexes.values()
        )
        self._twins: dict[Sequence, dict[str, Sequence]] = {}
        """A fork for each open context and index, whose states are built: the forks of all budgets copy it."""
        self._probes = {variant: Probe(every=None) for variant in variants}
        self.template = Template(runtime.tokenizer)

    def tokens_read(self, variant: Variant) -> float:
        """Mean number of tokens read over the steps and layers so far, per KV head; sinks, window and tail included."""
        return self._probes[variant].result()["tokens_read"]

    # Text to tokens

    def count(self, text: str) -> int:
        """Count the tokens of a person's text."""
        return len(self.template.encode_plain(text))

    def running_text(self, text: str) -> np.ndarray:
        """Encode running text, as the tokenizer alone would."""
        return as_array(self.runtime.tokenizer(text).input_ids)

    def opening(self, text: str) -> np.ndarray:
        """Encode a conversation's first words: template, then `text`, with its turn still open."""
        begin = self.template.encoder.begin if self.template.is_plain else []
        before = self.template.encode(self.template.first(None).before)
        return as_array([*begin, *before, *self.template.encode_plain(text)])

    def closing(self, text: str, prefix: str, *, first: bool) -> np.ndarray:
        """Encode the rest of a user's turn, up to where the reply goes on after `prefix`."""
        turn = self.template.first(None) if first else self.template.next()
        return as_array(self._piece(text) + self.template.encode(turn.after) + self._piece(prefix))

    def turn(self, text: str, prefix: str) -> np.ndarray:
        """Encode a whole later turn, from the end of the last reply."""
        between = self.template.encode(self.template.next().before) if not self.template.is_plain else self._piece("\n")
        return np.concatenate([as_array(between), self.closing(text, prefix, first=False)])

    def question(self, text: str, prefix: str, *, first: bool) -> np.ndarray:
        """Encode a question and the beginning of its reply, after the context or after an earlier reply."""
        return self.closing("\n" + text, prefix, first=True) if first else self.turn(text, prefix)

    def reply(self, text: str) -> np.ndarray:
        return as_array(self._piece(text))

    def _piece(self, text: str) -> list[int]:
        return self.template.encode_plain(text) if text else []

    # Sequences

    @contextmanager
    def prefilled(self, ids: np.ndarray) -> Iterator[Sequence]:
        """Prefill a context that every variant can fork. Prefill is exact, whatever the variants.

        Where an index or a placement learns from queries nothing is taken from the store: a prompt's queries are not
        kept there, and a chat's index has seen those of its own prompt.
        """
        sequence = self._prefilling.new_sequence(keep_queries=self._learns, keep_rows=self._judges)
        self._twins[sequence] = {}
        try:
            self._prefilling.prefill(sequence, ids, want_logits=False, reuse=not self._learns)
            yield sequence
        finally:
            self._close_twins(sequence)
            del self._twins[sequence]
            sequence.close()

    def extend(self, sequence: Sequence, ids: np.ndarray) -> None:
        """Append words that are read exactly, as a user's are."""
        self._close_twins(sequence)
        self._prefilling.prefill(sequence, ids, want_logits=False, reuse=False)

    @contextmanager
    def fork(self, variant: Variant, past: Sequence) -> Iterator[Sequence]:
        """Fork `past`, a context or another fork; neither changes when the fork goes on."""
        engine = self.engines[variant]
        twins = self._twins.get(past)
        if twins is not None:
            if variant.index not in twins:
                twins[variant.index] = engine.fork(past, places=False)
            past = twins[variant.index]
        sequence = engine.fork(past)
        self._probes[variant].attach(sequence)
        try:
            yield sequence
        finally:
            sequence.close()

    def _close_twins(self, sequence: Sequence) -> None:
        twins = self._twins.get(sequence, {})
        for twin in twins.values():
            twin.close()
        twins.clear()

    def hear(self, variant: Variant, sequence: Sequence, turns: Iterable[tuple[str, str]]) -> None:
        """Read earlier turns after the context, each (the user's words, the reply): the words are read exactly, as in a
        chat, unless a prompt has the first already, and the reply passes through the index, as the model's own."""
        for place, (said, replied) in enumerate(turns):
            if place or self.asks != "prompt":
                words = self.question(said, "", first=place == 0)
                self.engines[variant].prefill(sequence, words, want_logits=False, reuse=False)
            self.read(variant, sequence, self.reply(replied))

    def read(self, variant: Variant, sequence: Sequence, ids: np.ndarray) -> Tensor:
        """Read the reader's own or known words through the index. Returns logits after each `[len(ids), V]`."""
        return self.engines[variant].decode_known(sequence, ids)

    def ask(self, variant: Variant, sequence: Sequence, ids: np.ndarray) -> Tensor:
        """Ask a question, sparsely or exactly. Returns logits after its last token `[V]`."""
        if self.asks == "sparse":
            return self.read(variant, sequence, ids)[-1]
        logits = self.engines[variant].prefill(sequence, ids, reuse=False).logits
        assert logits is not None
        return logits

    def expected(self, variant: Variant, sequence: Sequence, logits: Tensor, gold: np.ndarray) -> np.ndarray:
        """Teacher forcing: True for each token of `gold` that was the likeliest, bool `[len(gold)]`.

        `logits` `[V]` are those before the first; afterwards the sequence has read all of `gold`.
        """
        after = self.read(variant, sequence, gold)
        likeliest = [int(logits.argmax()), *after[:-1].argmax(-1).tolist()]
        right: np.ndarray = np.equal(likeliest, gold)
        return right


def _engines(runtime: Runtime, variants: list[Variant]) -> dict[Variant, Engine]:
    """Make one engine per variant; those of the same index share it."""
    found: dict[Variant, Engine] = {}
    by_index: dict[str, Engine] = {}
    for variant in variants:
        found[variant] = runtime.reading(variant.config(runtime.config), by_index.get(variant.index))
        by_index.setdefault(variant.index, found[variant])
    return found


def index_bytes(sequence: Sequence) -> dict[str, float]:
    """The size of an index, or of what a placement knows: `index_bytes` per token and KV head, and `index_fixed_bytes`
    per KV head, which is learned and does not grow. Means over layers."""
    layers = [layer for layer in tiered_layers(sequence.layers) if layer.indexed]
    heads = max(1, sum(layer.layout.num_heads for layer in layers))
    fixed = sum(tensor.nbytes for layer in layers for tensor in layer.upkeep.learned().values())
    kept = sum(layer.index.state_bytes(layer.state) for layer in layers)
    kept += sum(layer.placed.num_bytes for layer in layers if layer.placed is not None)
    tokens = max(1, sum(layer.indexed * layer.layout.num_heads for layer in layers))
    return {"index_bytes": (kept - fixed) / tokens, "index_fixed_bytes": fixed / heads}
