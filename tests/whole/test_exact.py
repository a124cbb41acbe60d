"""With the budget at the context's length, real models equal transformers' own dense ones."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from memory import give_back
from places import ABBEY
from tiny_models import reference_model

from stratakv.runtime import KVConfig, ModelFileError, Runtime

TEXT = ABBEY.read_text()
STARTS = (0, 3000, 6500, 9000, 12000)
LENGTHS = (40, 57, 70, 91, 300)
STEPS = (16, 4)
"""Greedy tokens after the first prompts and after the second: each conversation seals a page in the first ones."""
FORCED = 48

pytestmark = pytest.mark.model


@pytest.fixture(autouse=True)
def _models_go() -> Iterator[None]:
    """Each test loads several, of up to a gigabyte."""
    yield
    give_back()


def load(name: str | Path, folder: Path, number_type: str, **kv: Any) -> Runtime:
    """With room for what the tests say, and no more: what a machine could hold is not what a test should. With weights
    that transformers can read."""
    try:
        settings = KVConfig(path=folder, budget=4096, host_gb=0.25, **kv)
        return Runtime.load(name, dtype=number_type, weights="own", kv=settings, local_files_only=True)
    except ModelFileError as error:
        pytest.skip(str(error))


def directory(runtime: Runtime) -> Path:
    return Path(runtime.model.hf.config._name_or_path)


def prompts(runtime: Runtime) -> list[np.ndarray]:
    """Five prompts of different lengths, none a whole number of pages."""
    return [
        np.array(runtime.tokenizer(TEXT[start : start + 6 * length]).input_ids[:length], dtype=np.uint32)
        for start, length in zip(STARTS, LENGTHS, strict=True)
    ]


def greedy(
    runtime: Runtime, sequences: list[Any], turns: list[np.ndarray], steps: int, to: Path
) -> tuple[Path, np.ndarray]:
    """A file with the logits, fp32 `[steps, sequences, vocabulary]`, and the chosen tokens `[sequences, steps]`. A file
    that is not mapped takes no memory."""
    read = [runtime.engine.prefill(s, t).logits for s, t in zip(sequences, turns, strict=True)]
    logits, chosen = torch.stack([row for row in read if row is not None]), []
    with to.open("wb") as file:
        for _ in range(steps):
            logits.numpy().tofile(file)
            chosen.append(logits.argmax(-1).tolist())
            logits = runtime.engine.decode(sequences, chosen[-1])
    return to, np.array(chosen).T


@torch.inference_mode()
def expected(reference: Any, fed: np.ndarray, places: np.ndarray) -> torch.Tensor:
    """transformers' logits `[len(places), vocabulary]` before the tokens of `fed` that stand there."""
    ids = torch.from_numpy(fed.astype(np.int64)).unsqueeze(0)
    logits: torch.Tensor = reference(ids, logits_to_keep=torch.from_numpy(places - 1)).logits[0].float()
    return logits


def two_turns(name: str, folder: Path) -> tuple[Path, list[tuple[list[np.ndarray], Path, np.ndarray]]]:
    """Where the model is, and of each turn the prompts, and as `greedy` our logits and the tokens chosen from them. The
    runtime is closed then: the reference is as large."""
    with load(name, folder, "float32", index="bounds") as runtime:
        sequences = [runtime.engine.new_sequence() for _ in STARTS]
        firsts = prompts(runtime)
        seconds = [first[5:45] for first in reversed(firsts)]
        found = [
            (turns, *greedy(runtime, sequences, turns, steps, folder / f"{steps}.logits"))
            for turns, steps in zip((firsts, seconds), STEPS, strict=True)
        ]
        runtime.store.check_integrity()
        return directory(runtime), found


def logits_of(sequence: int, file: Path, vocabulary: int) -> torch.Tensor:
    """What `greedy` wrote of one sequence `[steps, vocabulary]`."""
    written = np.memmap(file, dtype=np.float32, mode="r").reshape(-1, len(STARTS), vocabulary)
    return torch.from_numpy(written[:, sequence].copy())


@pytest.mark.parametrize("name", ["smollm2", "gemma3-270m"])
def test_five_ragged_prompts_and_a_second_turn_equal_transformers(name: str, tmp_path: Path) -> None:
    folder, found = two_turns(name, tmp_path)
    give_back()
    reference = reference_model(folder)
    for i in range(len(STARTS)):
        said = [part for turns, _, tokens in found for part in (turns[i], tokens[i])]
        ends = np.cumsum([len(part) for part in said])[1::2]
        places = [np.arange(end - steps, end) for end, steps in zip(ends, STEPS, strict=True)]
        theirs = expected(reference, np.concatenate(said), np.concatenate(places))
        ours = torch.cat([logits_of(i, file, theirs.shape[1]) for _, file, _ in found])
        for mine, true in zip(ours.split(STEPS), theirs.split(STEPS), strict=True):
            assert (mine - true).abs().max() <= 1e-4 * true.abs().max()
        assert [*said[1], *said[3]] == theirs.argmax(-1).tolist()


def teacher_forced(runtime: Runtime, ids: np.ndarray) -> torch.Tensor:
    """Our log-probabilities `[FORCED, vocabulary]` of the last positions, fed one by one."""
    sequence = runtime.engine.new_sequence()
    logits = runtime.engine.prefill(sequence, ids[: 1 - FORCED]).logits
    assert logits is not None
    found = torch.empty(FORCED, len(logits))
    found[0] = logits.log_softmax(-1)
    for row, token in enumerate(ids[1 - FORCED :].tolist(), 1):
        found[row] = runtime.engine.decode([sequence], [token])[0].log_softmax(-1)
    return found


def mean_kl(true: torch.Tensor, other: torch.Tensor) -> float:
    """Row by row: a large vocabulary's rows together are large."""
    rows = [(p.exp() * (p - q)).sum() for p, q in zip(true, other, strict=True)]
    return float(torch.stack(rows).mean())


@torch.inference_mode()
def their_log_probabilities(folder: Path, dtype: torch.dtype, ids: np.ndarray) -> torch.Tensor:
    """transformers' own of the same positions. What was loaded before is let go first."""
    give_back()
    found = expected(reference_model(folder, dtype), ids, np.arange(1 - FORCED, 1) + len(ids))
    for row in found:
        row.copy_(row.log_softmax(-1))
    return found


def test_bf16_adds_no_more_than_its_rounding(tmp_path: Path) -> None:
    """Mean KL to fp32 over `FORCED` teacher-forced positions of real text.

    A bf16 cache under an fp32 model stays below 1e-4. A bf16 model differs from fp32 by some 1e-3
    in transformers too, and by as much from itself when it is fed in other pieces: ours may not be
    further from fp32 than transformers' own bf16 model (docs/decisions/0003).
    """
    with load("smollm2", tmp_path, "float32", dtype="bfloat16") as half_cache:
        folder = directory(half_cache)
        ids = np.array(half_cache.tokenizer(TEXT[5000:9000]).input_ids[:160], dtype=np.uint32)
        cached = teacher_forced(half_cache, ids)
    del half_cache
    exact = their_log_probabilities(folder, torch.float32, ids)
    assert mean_kl(exact, cached) <= 1e-4
    noise = mean_kl(exact, their_log_probabilities(folder, torch.bfloat16, ids))
    with load(folder, tmp_path, "bfloat16") as half:
        assert mean_kl(exact, teacher_forced(half, ids)) <= 1.25 * noise
