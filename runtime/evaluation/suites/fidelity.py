"""Fidelity: how far next-token distributions on real text move when decode reads fewer tokens.

Each context is prefilled once, exactly; its last `POSITIONS` tokens then pass through the decode
path, once per variant, and every distribution is compared with dense decoding of the same tokens.
The floor also appears with next to nothing to read (`window` at the smallest budget): an index that
is not ten times better than that is not being tested by these contexts.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..harness import Harness, index_bytes
from ..options import EvalOptions, Ticker
from ..probe import Probe
from ..statistics import FEWEST, bootstrap, judge, keeps_within
from ..texts import Texts
from ..variants import CEILING, DENSE, FLOOR, Variant

POSITIONS = 128
_PROBED = 7
"""Attention itself is compared at one position in this many: each costs a dense step. Prime to the page size, so that
tails of all lengths are seen."""
_SOURCES = ("novel", "novel", "verses", "docs")
_CHARACTERS_PER_TOKEN = 6


def run(harness: Harness, options: EvalOptions, texts: Texts, ticker: Ticker) -> dict[str, Any]:
    """Measure all variants on `options.samples` contexts of `options.ctx` tokens."""
    found = list(contexts(harness, options, texts))
    ticker.start(len(found) * (1 + len(harness.variants)))
    seen = [(source, _measure(harness, source, ids, ticker)) for source, ids in found]
    rows = [_row(variant, [(source, of[variant]) for source, of in seen]) for variant in harness.variants]
    ceilings = {row["budget"]: row for row in rows if row["index"] == CEILING}
    bare = max((row for row in rows if row["index"] == FLOOR), key=lambda row: row["kl"])
    for variant, row in zip(harness.variants, rows, strict=True):
        best = ceilings.get(variant.budget) if variant.index != DENSE else None
        row["kl_over_oracle"] = row["kl"] / best["kl"] if best and best["kl"] else None
        if not variant.is_yardstick:
            row |= judge(_marks(row, ceilings[variant.budget], bare))
    return {"positions": POSITIONS, "variants": rows}


def contexts(harness: Harness, options: EvalOptions, texts: Texts) -> Iterator[tuple[str, np.ndarray]]:
    """Yield (source, tokens `[options.ctx]`): windows at random places of the texts, by the seed."""
    for sample in range(options.samples):
        source = _SOURCES[sample % len(_SOURCES)]
        rng = random.Random(f"{options.seed}/{sample}")
        text = _text(texts, source, rng)
        length = options.ctx * _CHARACTERS_PER_TOKEN
        start = rng.randrange(max(1, len(text) - length))
        start = text.find("\n", start) + 1 if start else 0
        ids = harness.running_text(text[start : start + length])
        if len(ids) < options.ctx:
            raise ValueError(
                f"the {source} text gives {len(ids)} tokens from where sample {sample} begins, fewer than ctx "
                f"{options.ctx}; use a shorter ctx or the full texts (`make data`)"
            )
        yield source, ids[: options.ctx]


def _text(texts: Texts, source: str, rng: random.Random) -> str:
    if source == "novel":
        novels = texts.novels()
        return novels[rng.choice(sorted(novels))]
    if source == "verses":
        return "\n".join(f"{citation} {verse}" for citation, verse in texts.verses())
    return texts.docs()


def _measure(harness: Harness, source: str, ids: np.ndarray, ticker: Ticker) -> dict[Variant, dict[str, Any]]:
    """Measure each variant: its arrays per position, and means over them."""
    known, past = ids[-POSITIONS - 1 : -1], ids[: -POSITIONS - 1]
    targets = torch.from_numpy(ids[-POSITIONS:].astype(np.int64)).unsqueeze(1)
    found: dict[Variant, dict[str, Any]] = {}
    ticker.advance(f"{source}: prefill")
    with harness.prefilled(past) as base:
        true: Tensor | None = None
        for variant in harness.variants:
            ticker.advance(f"{source}: {variant.label}")
            probe = Probe(every=_PROBED)
            with harness.fork(variant, base) as sequence:
                probe.attach(sequence)
                log_p = harness.read(variant, sequence, known).log_softmax(-1).cpu()
                kept = {**probe.result(), **index_bytes(sequence)}
            if true is None:
                assert variant.index == DENSE
                true = log_p
            found[variant] = {
                "kl": (true.exp() * (true - log_p)).sum(-1).clamp_min(0).numpy(),
                "agree": (true.argmax(-1) == log_p.argmax(-1)).numpy(),
                "nll_change": (true.gather(1, targets) - log_p.gather(1, targets))[:, 0].double().numpy(),
                "nll": -log_p.gather(1, targets)[:, 0].double().numpy(),  # their means are compared
                "means": kept,
            }
    return found


def _row(variant: Variant, seen: list[tuple[str, dict[str, Any]]]) -> dict[str, Any]:
    pooled = {name: np.concatenate([found[name] for _, found in seen]) for name in ("kl", "agree", "nll_change", "nll")}
    clusters = np.repeat(np.arange(len(seen)), POSITIONS)
    by_context = [_summary(found) for _, found in seen]
    return {
        **variant.as_dict(),
        **_summary({**pooled, "means": _mean([found["means"] for _, found in seen])}),
        "kl_interval": bootstrap(pooled["kl"], clusters),
        "worst_context_kl": max(context["kl"] for context in by_context),
        "by_context": [{"source": of[0], **context} for of, context in zip(seen, by_context, strict=True)],
    }  # fmt: skip


def _summary(found: dict[str, Any]) -> dict[str, float]:
    return {
        "kl": float(found["kl"].mean()),
        "kl_p99": float(np.quantile(found["kl"], 0.99)),
        "top1_agree": float(found["agree"].mean()),
        "nll_change": float(found["nll_change"].mean()),
        "perplexity": float(np.exp(found["nll"].mean())),
        "perplexity_change": float(np.expm1(found["nll_change"].mean())),
        **found["means"],
    }


def _mean(contexts: list[dict[str, float]]) -> dict[str, float]:
    return {name: float(np.mean([context[name] for context in contexts])) for name in contexts[0]}


def _marks(row: dict[str, Any], best: dict[str, Any], bare: dict[str, Any]) -> dict[str, bool | None]:
    """Judge a variant. `best` is the oracle at the same budget, `bare` the floor with the highest KL."""
    kl, best_kl, bare_kl = (_by_context(of, "kl") for of in (row, best, bare))
    top1, best_top1 = (_by_context(of, "top1_agree") for of in (row, best))
    is_even = row["worst_context_kl"] <= 3 * row["kl"]
    return {
        f"KL at most 2 x oracle's + 0.005 = {2 * best['kl'] + 0.005:.3f}": keeps_within(kl - 2 * best_kl - 0.005),
        "top-1 within 3 points of oracle's": keeps_within(best_top1 - 0.03 - top1),
        "worst context at most 3 x the mean": is_even if len(kl) >= FEWEST else None,
        "the bare window's KL at least 10 x its own": keeps_within(10 * kl - bare_kl),
    }


def _by_context(row: dict[str, Any], name: str) -> np.ndarray:
    """A figure's mean in each context `[contexts]`: all have as many positions."""
    return np.array([context[name] for context in row["by_context"]])
