"""The check that comes before any speed: with everything read, our logits must be transformers' own.

In fp32 they are, up to the order of sums. In 16 bits two right ways of computing differ by what rounding adds up to
over the layers, which no fixed number bounds: ours may be `SLACK` times as far from fp32 as transformers' are; where
fp32 does not fit, so many times as far from transformers' SDPA attention as its eager attention is.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..api.errors import StratakvError
from ..model.model import Model
from .options import BenchOptions
from .subject import Reference, Subject

Tell = Callable[[str], None]
Logits = list[Tensor]
"""After the prompts and after each step, fp32 `[batch, vocabulary]`."""

TOLERANCE = 1e-4
"""The largest difference in fp32 that is allowed, as a share of the largest logit."""
SLACK = 1.25
_LONGEST = 1024
_STEPS = 8
_HOST_GB = 4.0
"""GB of host memory, enough for the check. Pinning more would take longer than the check."""


class WrongLogitsError(StratakvError):
    """Our logits are not transformers': no speed is reported."""


def check_logits(subject: Subject, options: BenchOptions, folder: Path, log: Tell) -> dict[str, float]:
    """Compare logits with transformers' over a real prefill and a few steps.

    This is done in the dtype that is timed, and in fp32, which leaves nothing to rounding, where memory holds such a
    copy. The tokens are the first of those that are timed, up to 1,024; the tiers have the first caps that are measured
    (host memory at most 4 GB), and two sequences take their steps together if batches are measured.

    Returns by dtype the largest difference, as a share of the largest logit. In 16 bits also what was compared: `ours`
    and `theirs` after the dtype's name, root mean squares as a share of that of the logits.

    Raises WrongLogitsError if ours are further off than they may be.
    """
    dtype, exact = subject.model.dtype, torch.float32
    prompts = [subject.tokens(b, min(_LONGEST, *options.contexts)) for b in range(min(2, max(options.batches)))]
    theirs, tokens = _theirs(subject.reference(dtype), prompts)
    mine = _ours(subject, subject.model, options, folder / _name(dtype), prompts, tokens)
    found = {_name(dtype): _largest(mine, theirs)}
    if dtype == exact:
        _check(found["float32"], "transformers'", "float32", TOLERANCE, "")
    elif subject.has_room_for(exact, options):
        model, reference = subject.pair(exact)
        true, _ = _theirs(reference, prompts, tokens)
        found["float32"] = _largest(_ours(subject, model, options, folder / "float32", prompts, tokens), true)
        _check(found["float32"], "transformers'", "float32", TOLERANCE, "")
        found |= _check_rounding(dtype, mine, theirs, true, "fp32's", "transformers' own do")
    else:
        eager, _ = _theirs(subject.eager(dtype), prompts, tokens)
        found |= _check_rounding(dtype, mine, eager, theirs, "transformers'", "those of its eager attention do")
    for name in [name for name in dict.fromkeys([_name(dtype), "float32"]) if name in found]:
        log(f"logits equal transformers' within {found[name]:.1e} of their size in {name} when everything is read")
    return found


def _check_rounding(
    dtype: torch.dtype, mine: Logits, other: Logits, true: Logits, whose: str, others: str
) -> dict[str, float]:
    """Refuse ours if they are more than `SLACK` times as far from `true` as `other` are."""
    name, ours, theirs = _name(dtype), _mean(mine, true), _mean(other, true)
    _check(ours, whose, name, SLACK * theirs, f", which is {SLACK} times what {others}")
    return {f"{name}_ours": ours, f"{name}_theirs": theirs}


def _check(difference: float, whose: str, name: str, allowed: float, why: str) -> None:
    if not difference <= allowed:
        raise WrongLogitsError(
            f"logits differ from {whose} by {difference:.2e} of their size in {name}, more than {allowed:.2g}{why}; "
            "no speed is reported"
        )


def _theirs(
    reference: Reference, prompts: list[np.ndarray], steps: list[list[int]] | None = None
) -> tuple[Logits, list[list[int]]]:
    """The logits of transformers, and the tokens of the steps: its likeliest, unless they are given."""
    caches = [reference.new_cache() for _ in prompts]
    found = [torch.cat([reference.extend(c, p[None]) for c, p in zip(caches, prompts, strict=True)])]
    taken = []
    for step in range(_STEPS):
        taken.append(found[-1].argmax(-1).tolist() if steps is None else steps[step])
        tokens = zip(caches, taken[-1], strict=True)
        found.append(torch.cat([reference.extend(cache, np.array([[token]])) for cache, token in tokens]))
    return found, taken


def _ours(
    subject: Subject, model: Model, options: BenchOptions, folder: Path, prompts: list[np.ndarray],
    steps: list[list[int]],
) -> Logits:  # fmt: skip
    """Our logits over the same tokens."""
    caps = replace(options.caps[0], host_gb=min(_HOST_GB, options.caps[0].host_gb or _HOST_GB))
    kv = replace(options.kv(folder, "dense", caps), dtype="auto", codec="zstd")
    with subject.runtime(kv, model) as runtime:
        engine = runtime.engine
        sequences = [engine.new_sequence() for _ in prompts]
        after = [engine.prefill(s, p, reuse=False).logits for s, p in zip(sequences, prompts, strict=True)]
        found = [torch.stack([logits for logits in after if logits is not None]).float()]
        found += [engine.decode(sequences, tokens).clone() for tokens in steps]
        for sequence in sequences:
            sequence.close()
    return found


def _largest(mine: Logits, other: Logits) -> float:
    """The largest difference, as a share of the largest logit of the same place."""
    worst = 0.0
    for ours, theirs in zip(mine, other, strict=True):
        difference = float(((ours - theirs).abs().amax(-1) / theirs.abs().amax(-1)).max())
        worst = max(worst, difference) if difference == difference else float("inf")
    return worst


def _mean(mine: Logits, other: Logits) -> float:
    """The root mean square of the differences, as a share of that of the logits."""
    ours, theirs = torch.stack(mine), torch.stack(other)
    return float((ours - theirs).norm() / theirs.norm())


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
