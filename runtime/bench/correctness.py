"""The check that comes before any speed: with everything read, our logits must be transformers' own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from ..api.errors import StratakvError
from .options import BenchOptions
from .subject import Subject

Tell = Callable[[str], None]

TOLERANCE = {"float32": 1e-4, "bfloat16": 5e-2, "float16": 1e-2}
"""The largest logit difference allowed, as a share of the largest logit. bf16 keeps 8 bits, fp16 11."""
_LONGEST = 1024
_STEPS = 8
_HOST_GB = 4.0
"""GB of host memory, enough for the check. Pinning more would take longer than the check."""


class WrongLogitsError(StratakvError):
    """Our logits are not transformers': no speed is reported."""


def check_logits(subject: Subject, options: BenchOptions, folder: Path, log: Tell) -> dict[str, float]:
    """Compare logits with transformers' over a real prefill and a few steps. Returns by dtype the largest difference,
    as a share of the largest logit.

    This is done in the dtype that is timed, and in fp32, which leaves nothing to rounding, where memory holds such a
    copy. The tokens are the first of those that are timed, up to 1,024; the tiers have the first caps that are measured
    (host memory at most 4 GB), and two sequences take their steps together if batches are measured.

    Raises WrongLogitsError beyond the tolerance.
    """
    found = {}
    for dtype in dict.fromkeys([subject.model.dtype, torch.float32]):
        if not subject.has_room_for(dtype, options):
            continue
        name = str(dtype).removeprefix("torch.")
        found[name] = worst = _largest_difference(subject, options, folder / name, dtype)
        if not worst <= TOLERANCE[name]:
            raise WrongLogitsError(
                f"logits differ from transformers' by {worst:.2e} of their size, more than {TOLERANCE[name]:.0e} "
                f"in {name}; no speed is reported"
            )
        log(f"logits equal transformers' within {worst:.1e} of their size in {name} when everything is read")
    return found


def _largest_difference(subject: Subject, options: BenchOptions, folder: Path, dtype: torch.dtype) -> float:
    model, reference = subject.pair(dtype)
    caps = replace(options.caps[0], host_gb=min(_HOST_GB, options.caps[0].host_gb or _HOST_GB))
    kv = replace(options.kv(folder, "dense", caps), dtype="auto", codec="zstd")
    prompts = [subject.tokens(b, min(_LONGEST, *options.contexts)) for b in range(min(2, max(options.batches)))]
    with subject.runtime(kv, model) as runtime:
        engine = runtime.engine
        sequences = [engine.new_sequence() for _ in prompts]
        mine = [engine.prefill(s, p, reuse=False).logits for s, p in zip(sequences, prompts, strict=True)]
        caches = [reference.new_cache() for _ in prompts]
        theirs = [reference.extend(c, p[None])[0] for c, p in zip(caches, prompts, strict=True)]
        worst = _worst(mine, theirs)
        for _ in range(_STEPS):
            tokens = [int(logits.argmax()) for logits in theirs]
            mine = list(engine.decode(sequences, tokens))
            theirs = [
                reference.extend(cache, np.array([[token]]))[0] for cache, token in zip(caches, tokens, strict=True)
            ]
            worst = max(worst, _worst(mine, theirs))
        for sequence in sequences:
            sequence.close()
    return worst


def _worst(mine: list[torch.Tensor | None], theirs: list[torch.Tensor]) -> float:
    found = 0.0
    for ours, other in zip(mine, theirs, strict=True):
        assert ours is not None
        difference = float((ours - other).abs().max() / other.abs().max())
        found = max(found, difference) if difference == difference else float("inf")
    return found
