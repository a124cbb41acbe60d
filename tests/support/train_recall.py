"""Train the model in `tests/data/recall`: a two-layer Llama that looks up pairs in 4,096 tokens of filler.

    OMP_NUM_THREADS=1 python tests/support/train_recall.py --out tests/data/recall

Two things make minutes enough. The weights start near the circuit that solves the task (`lay_out`): from
transformers' random ones it had not formed after 600 steps. And short sequences train with positions spread
over the whole window (`batch`), so that the costly long ones have little left to teach.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from recall import END, FIRST_FILLER, NAMES, VOCABULARY, make_context, questions
from torch import Tensor
from torch.nn import functional

POSITIONS = 8192
HIDDEN, HEAD = 64, 32
THETA = 1e6
CHECKED = ((64, 8), (256, 32), (1024, 64), (4096, 64))
"""Tokens and pairs of the contexts that accuracy is measured on."""


class Stage(NamedTuple):
    tokens: int
    """Of one sequence, its questions included: one per pair."""
    pairs: int
    size: int
    """Sequences in a batch."""
    steps: int
    rate: float


STAGES = (
    Stage(64, 8, 32, 200, 3e-3),
    Stage(256, 32, 8, 150, 2e-3),
    Stage(1024, 64, 2, 100, 1e-3),
    Stage(4096, 128, 1, 50, 5e-4),
)
WARM_UP = 50


def make_model() -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=HIDDEN, intermediate_size=2 * HIDDEN, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, head_dim=HEAD, max_position_embeddings=POSITIONS,
        rope_parameters={"rope_type": "default", "rope_theta": THETA}, tie_word_embeddings=True,
        bos_token_id=END, eos_token_id=END, pad_token_id=END,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    lay_out(model)
    return model


@torch.no_grad()
def lay_out(model: Any) -> None:
    """Start near an induction head: head 0 of the first layer looks at the previous token and copies what
    it is; head 0 of the second looks where that copy equals the present token. The other heads, the MLPs
    and what to do with the token found start at random; training moves everything.
    """
    first, second = (layer.self_attn for layer in model.model.layers)
    embedding = model.model.embed_tokens.weight.normal_(0, 0.1)
    embedding[:, 0] = 0.4  # in every token: what a query that ignores content can be made of

    fast = torch.arange(3)  # rotary channels that tell neighbours apart; channel i turns with i + HEAD / 2
    angle = THETA ** (-fast / (HEAD // 2))
    strength = torch.tensor([2.5, 1.25, 1.25])
    first.k_proj.weight[fast, 0] = strength
    first.q_proj.weight[fast, 0] = strength * angle.cos()  # turned back by one position
    first.q_proj.weight[fast + HEAD // 2, 0] = -strength * angle.sin()

    basis = torch.linalg.qr(torch.randn(HIDDEN, 2 * HEAD))[0].T
    basis[:, 0] = 0
    here, before = basis[:HEAD], basis[HEAD:]
    first.v_proj.weight[:HEAD] = here
    first.o_proj.weight[:, :HEAD] = 0.15 * before.T
    slow = torch.tensor([*range(8, 16), *range(24, 32)])
    second.q_proj.weight[slow] = 2.5 * here[: len(slow)]
    second.k_proj.weight[slow] = 2.5 * before[: len(slow)]


def batch(
    rng: np.random.Generator, size: int, tokens: int, pairs: int, *, spread: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Ids and positions `[size, tokens]`, and the answers `[size, pairs]` to the questions at the end.

    With `spread` there are gaps before up to 16 filler tokens, together as long as the window allows.
    """
    ids = np.empty((size, tokens), dtype=np.int64)
    answers = np.empty((size, pairs), dtype=np.int64)
    steps = np.ones((size, tokens), dtype=np.int64)
    steps[:, 0] = 0
    for row in range(size):
        context, asked = make_context(rng, tokens - 3 * pairs, pairs)
        ids[row] = np.concatenate([context, questions(asked)])
        answers[row] = asked[:, 1]
        if spread:
            places = rng.choice(np.flatnonzero(ids[row] >= FIRST_FILLER), 16)
            room = int(rng.integers(POSITIONS - tokens))
            np.add.at(steps[row], places, rng.multinomial(room, np.full(16, 1 / 16)))
    return torch.from_numpy(ids), torch.from_numpy(steps.cumsum(1)), torch.from_numpy(answers)


def answer(model: Any, ids: Tensor, positions: Tensor, pairs: int) -> Tensor:
    """Logits `[size, pairs, vocabulary]` after the key of each question."""
    one_sequence = torch.ones_like(ids)  # else gaps in the positions would mean several
    hidden = model.model(input_ids=ids, position_ids=positions, attention_mask=one_sequence, use_cache=False)[0]
    logits: Tensor = model.lm_head(hidden[:, ids.shape[1] - 3 * pairs + 1 :: 3])
    return logits


@torch.no_grad()
def accuracy(model: Any, tokens: int, pairs: int) -> float:
    """The share of at least 256 questions, after contexts of `tokens`, that the model answers right."""
    rng = np.random.default_rng(1)
    right = []
    for _ in range(max(4, 256 // pairs)):
        ids, positions, answers = batch(rng, 1, tokens + 3 * pairs, pairs, spread=False)
        right.append((answer(model, ids, positions, pairs).argmax(-1) == answers).double().mean())
    return float(torch.stack(right).mean())


def train(model: Any, rng: np.random.Generator) -> None:
    started = time.perf_counter()
    optimizer = torch.optim.AdamW(model.parameters(), betas=(0.9, 0.98), weight_decay=0.01)
    for stage in STAGES:
        for step in range(stage.steps):
            optimizer.param_groups[0]["lr"] = stage.rate * min(1.0, (step + 1) / WARM_UP)
            ids, positions, answers = batch(rng, stage.size, stage.tokens, stage.pairs, spread=True)
            logits = answer(model, ids, positions, stage.pairs)
            loss = functional.cross_entropy(logits.flatten(0, 1), answers.flatten())
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            if step % (stage.steps // 5) == 0:
                print(f"{stage.tokens} tokens, step {step}: loss {loss.item():.4f}", flush=True)
        found = ", ".join(f"{tokens}: {accuracy(model, tokens, pairs):.1%}" for tokens, pairs in CHECKED)
        print(f"{time.perf_counter() - started:.0f} s; accuracy by context: {found}", flush=True)


def save(model: Any, folder: Path) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    model.save_pretrained(folder)
    backend = Tokenizer(models.WordLevel({name: i for i, name in enumerate(NAMES)}, unk_token=NAMES[END]))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    end = NAMES[END]
    PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token=end, eos_token=end, pad_token=end, unk_token=end
    ).save_pretrained(folder)


def main() -> None:
    parser = argparse.ArgumentParser(description="Train the recall model of the tests.")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    torch.manual_seed(arguments.seed)
    model = make_model()
    print(f"{sum(p.numel() for p in model.parameters())} parameters, {torch.get_num_threads()} thread(s)")
    train(model, np.random.default_rng(arguments.seed))
    save(model, arguments.out)


if __name__ == "__main__":
    main()
