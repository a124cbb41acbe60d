"""One model, one prefill per context, and every variant reading from a fork of it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from torch import Tensor

from ..runtime import Runtime
from ..sequence import Sequence
from ..template import Template, as_array
from .probe import Probe
from .variants import Variant


class Harness:
    """Engines for all variants over one runtime's model and store.

    Args:
        question_sparse: whether questions are read the way replies are, through the index (the
            stricter protocol), or exactly, as `Chat.send` does.
    """

    def __init__(self, runtime: Runtime, variants: list[Variant], *, question_sparse: bool = True) -> None:
        self.runtime, self.variants, self.question_sparse = runtime, variants, question_sparse
        self.engines = {variant: runtime.reading(variant.config(runtime.config)) for variant in variants}
        self._probes = {variant: Probe(every=None) for variant in variants}
        self.template = Template(runtime.tokenizer)

    def tokens_read(self, variant: Variant) -> float:
        """Mean over its steps and layers so far, per KV head; sinks, window and tail included."""
        return self._probes[variant].result()["tokens_read"]

    # Text to tokens

    def count(self, text: str) -> int:
        """Tokens of a person's text."""
        return len(self.template.encode_plain(text))

    def running_text(self, text: str) -> np.ndarray:
        """Running text, as the tokenizer alone would give it."""
        return as_array(self.runtime.tokenizer(text).input_ids)

    def opening(self, text: str) -> np.ndarray:
        """A conversation's first words: template, then `text`, its turn still open."""
        return as_array(self.template.encode(self.template.first(None).before) + self.template.encode_plain(text))

    def closing(self, text: str, prefix: str, *, first: bool) -> np.ndarray:
        """The rest of a user's turn, up to where the reply goes on after `prefix`."""
        turn = self.template.first(None) if first else self.template.next()
        return as_array(self._piece(text) + self.template.encode(turn.after) + self._piece(prefix))

    def turn(self, text: str, prefix: str) -> np.ndarray:
        """A whole later turn, from the end of the last reply."""
        between = self.template.encode(self.template.next().before) if not self.template.is_plain else self._piece("\n")
        return np.concatenate([as_array(between), self.closing(text, prefix, first=False)])

    def reply(self, text: str) -> np.ndarray:
        return as_array(self._piece(text))

    def _piece(self, text: str) -> list[int]:
        return self.template.encode_plain(text) if text else []

    # Sequences

    @contextmanager
    def prefilled(self, ids: np.ndarray) -> Iterator[Sequence]:
        """A context every variant can fork. Prefill is exact, whatever the variants."""
        sequence = self.runtime.engine.new_sequence()
        try:
            self.runtime.engine.prefill(sequence, ids, want_logits=False)
            yield sequence
        finally:
            sequence.close()

    def extend(self, sequence: Sequence, ids: np.ndarray) -> None:
        """Append words that are read exactly, as a user's are."""
        self.runtime.engine.prefill(sequence, ids, want_logits=False, reuse=False)

    @contextmanager
    def fork(self, variant: Variant, past: Sequence) -> Iterator[Sequence]:
        sequence = self.engines[variant].fork(past)
        self._probes[variant].attach(sequence)
        try:
            yield sequence
        finally:
            sequence.close()

    def read(self, variant: Variant, sequence: Sequence, ids: np.ndarray) -> Tensor:
        """The reader's own or known words through the index; logits after each `[len(ids), V]`."""
        return self.engines[variant].decode_known(sequence, ids)

    def ask(self, variant: Variant, sequence: Sequence, ids: np.ndarray) -> Tensor:
        """A question, sparsely or exactly; logits after its last token `[V]`."""
        if self.question_sparse:
            return self.read(variant, sequence, ids)[-1]
        logits = self.engines[variant].prefill(sequence, ids, reuse=False).logits
        assert logits is not None
        return logits

    def expected(self, variant: Variant, sequence: Sequence, logits: Tensor, gold: np.ndarray) -> np.ndarray:
        """Teacher forcing: whether each token of `gold` was the likeliest, bool `[len(gold)]`.

        `logits` `[V]` are those before the first; afterwards the sequence has read all of `gold`.
        """
        after = self.read(variant, sequence, gold)
        likeliest = [int(logits.argmax()), *after[:-1].argmax(-1).tolist()]
        right: np.ndarray = np.equal(likeliest, gold)
        return right
