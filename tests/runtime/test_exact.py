"""With the budget at the context's length, real models equal transformers' own dense ones."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from stratakv.runtime import KVConfig, ModelFileError, Runtime
from tiny_models import reference_model

TEXT = (Path(__file__).parents[2] / "examples" / "northanger_abbey.txt").read_text()
STARTS = (0, 3000, 6500, 9000, 12000)
LENGTHS = (40, 137, 256, 300, 515)
STEPS = 64

pytestmark = pytest.mark.model


@pytest.fixture(scope="module", params=["smollm2", "gemma3-270m"])
def runtime(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runtime]:
    kv = KVConfig(path=tmp_path_factory.mktemp("kv"), index="bounds", budget=4096)
    try:
        loaded = Runtime.load(request.param, dtype="float32", kv=kv, local_files_only=True)
    except ModelFileError as error:
        pytest.skip(str(error))
    with loaded:
        yield loaded
        loaded.store.check_integrity()


def directory(runtime: Runtime) -> Path:
    return Path(runtime.model.hf.config._name_or_path)


def prompts(runtime: Runtime) -> list[np.ndarray]:
    """Five prompts of different lengths, none a whole number of pages."""
    return [
        np.array(runtime.tokenizer(TEXT[start : start + 6 * length]).input_ids[:length], dtype=np.uint32)
        for start, length in zip(STARTS, LENGTHS, strict=True)
    ]


def greedy(runtime: Runtime, sequences: list[Any], turns: list[np.ndarray], steps: int) -> tuple[torch.Tensor, np.ndarray]:
    """Logits `[sequences, steps, vocabulary]` and the tokens chosen from them `[sequences, steps]`."""
    rows = [runtime.engine.prefill(s, t).logits for s, t in zip(sequences, turns, strict=True)]
    logits, found, chosen = torch.stack(rows), [], []  # type: ignore[arg-type]
    for _ in range(steps):
        found.append(logits)
        chosen.append(logits.argmax(-1).tolist())
        logits = runtime.engine.decode(sequences, chosen[-1])
    return torch.stack(found, 1), np.array(chosen).T


@torch.inference_mode()
def expected(reference: Any, fed: np.ndarray, steps: int) -> torch.Tensor:
    """transformers' logits `[steps, vocabulary]` before each of the last `steps` tokens of `fed`."""
    ids = torch.from_numpy(fed.astype(np.int64)).unsqueeze(0)
    logits = reference(ids, logits_to_keep=steps + 1).logits[0, :-1]
    return logits.float()  # type: ignore[no-any-return]


def test_five_ragged_prompts_and_a_second_turn_equal_transformers(runtime: Runtime) -> None:
    reference = reference_model(directory(runtime))
    sequences = [runtime.engine.new_sequence() for _ in STARTS]
    firsts = prompts(runtime)
    seconds = [first[5:45] for first in reversed(firsts)]
    fed = [np.empty(0, dtype=np.uint32) for _ in STARTS]
    for turns, steps in ((firsts, STEPS), (seconds, 8)):
        logits, tokens = greedy(runtime, sequences, turns, steps)
        for i, turn in enumerate(turns):
            fed[i] = np.concatenate([fed[i], turn, tokens[i]])
            theirs = expected(reference, fed[i], steps)
            assert (logits[i] - theirs).abs().max() <= 1e-4 * theirs.abs().max()
            assert tokens[i].tolist() == theirs.argmax(-1).tolist()


def test_bf16_stays_within_its_own_noise(runtime: Runtime, tmp_path: Path) -> None:
    """Mean KL to transformers' bf16, teacher-forced over 128 positions of real text."""
    ids = np.array(runtime.tokenizer(TEXT[5000:9000]).input_ids[:384], dtype=np.uint32)
    theirs = expected(reference_model(directory(runtime), torch.bfloat16), np.append(ids, 0), 128)
    kv = KVConfig(path=tmp_path, index="bounds", budget=4096)
    with Runtime.load(directory(runtime), dtype="bfloat16", kv=kv) as half:
        sequence = half.engine.new_sequence()
        logits = half.engine.prefill(sequence, ids[:257]).logits
        mine = []
        for token in ids[257:].tolist():
            mine.append(logits)
            logits = half.engine.decode([sequence], [token])[0]
        mine.append(logits)
    ours, other = torch.stack(mine).log_softmax(-1), theirs.log_softmax(-1)  # type: ignore[arg-type]
    kl = (other.exp() * (other - ours)).sum(-1).mean()
    assert kl <= 1e-4, f"mean KL {kl:.2e}"
