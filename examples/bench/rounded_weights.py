"""What rounding a model's weights to 8 or 4 bits does to its predictions, as `weights="int8"` and `"int4"` do on a GPU.

    python examples/bench/rounded_weights.py [--model smollm2] [--windows 4] [--tokens 256] [--out FILE]

The rounded numbers need no GPU: each weight is rounded and packed as for one, and read back. transformers' model then
computes with them in fp32, so that nothing but the weights differs; one row has the model's own weights, computed in
bfloat16. Kullback-Leibler divergence of predictions from those with the file's weights in fp32, in nats, over windows
of the bundled text.

A GGUF file of 4 bits has groups of 32 itself. Rounding with groups of 32 finds its steps again, and loses next to
nothing; a model in 16 bits has no such steps. So weights are also rounded with their columns in a drawn order, by which
numbers of many of the file's groups come together. `search` is whether the best of several steps is looked for
(`runtime/model/rounding.py`), or all codes are spread over a group.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from builds import write_result
from torch import Tensor

from stratakv.kernels.int4_product import pack, widen_int4
from stratakv.runtime.chat.documents import read_text_file
from stratakv.runtime.model.locate import locate
from stratakv.runtime.model.packing import GROUP, Packing
from stratakv.runtime.model.rounding import to_int4
from stratakv.runtime.process.hardware import hardware

_TEXT = Path(__file__).resolve().parent.parent / "northanger_abbey.txt"
_CPU = torch.device("cpu")
_GROUPS = (32, 64, 128)
_SOME = 128
"""Positions whose logits are in memory at once."""
Round = Callable[[Tensor], Tensor]


def windows(model: str, count: int, tokens: int) -> Tensor:
    """Token ids `[count, tokens]`, spread over the text."""
    from transformers import AutoTokenizer

    ids = torch.tensor(AutoTokenizer.from_pretrained(model)(read_text_file(_TEXT)).input_ids)
    step = len(ids) // count
    return torch.stack([ids[at * step : at * step + tokens] for at in range(count)])


def rounded(packing: Packing) -> Round:
    """As a GPU has them."""
    return lambda weight: packing.pack(weight.bfloat16(), None, _CPU).widened().float()


def without_search(weight: Tensor) -> Tensor:
    codes, scales = to_int4(weight.bfloat16(), GROUP, last=(15,))
    return widen_int4(pack(codes), scales).float()


def in_drawn_order(by: Round) -> Round:
    """Rounds weights whose columns stand in another order meanwhile."""

    def of(weight: Tensor) -> Tensor:
        order = torch.randperm(weight.shape[1], generator=torch.Generator().manual_seed(weight.shape[0]))
        found = torch.empty_like(weight)
        found[:, order] = by(weight[:, order])
        return found

    return of


def ways() -> list[tuple[dict[str, Any], Round | None]]:
    """Facts of a row, and how its weights are made; None: they are the model's own."""
    found: list[tuple[dict[str, Any], Round | None]] = [
        ({"weights": "own", "computed_in": "bfloat16"}, None),
        ({"weights": "int8", "bits": 8.0}, rounded(Packing("int8"))),
    ]
    for columns, order in (("file", lambda by: by), ("drawn", in_drawn_order)):
        for group in _GROUPS:
            facts = {"weights": "int4", "group": group, "columns": columns, "search": True, "bits": 4 + 32 / group}
            found.append((facts, order(rounded(Packing("int4", group)))))
    for columns, make in (("file", without_search), ("drawn", in_drawn_order(without_search))):
        facts = {"weights": "int4", "group": GROUP, "columns": columns, "search": False, "bits": 4 + 32 / GROUP}
        found.append((facts, make))
    return found


class Predictions:
    """What a model predicts at each token of the windows, and how far others are from it."""

    def __init__(self, ids: Tensor, hf: Any) -> None:
        self._ids, self._own = ids, [hidden for _, hidden in self._hidden(hf, ids)]
        self._head = hf.lm_head.weight.clone()

    @staticmethod
    def _hidden(hf: Any, ids: Tensor) -> list[tuple[int, Tensor]]:
        return [(at, hf.model(row[None]).last_hidden_state[0].float()) for at, row in enumerate(ids)]

    def distance(self, hf: Any) -> dict[str, float]:
        """Mean and 99th percentile of the divergence, and the share of tokens whose likeliest successor is the same."""
        divergences, agree = [], []
        for at, hidden in self._hidden(hf, self._ids):
            for own, other in zip(torch.split(self._own[at], _SOME), torch.split(hidden, _SOME), strict=True):
                p = (own @ self._head.T).log_softmax(-1)
                q = (other @ hf.lm_head.weight.float().T).log_softmax(-1)
                divergences.append((p.exp() * (p - q)).sum(-1))
                agree.append(p.argmax(-1) == q.argmax(-1))
        kl = torch.cat(divergences)
        return {
            "kl_mean": float(kl.mean()), "kl_p99": float(kl.quantile(0.99)),
            "top1_agree": float(torch.cat(agree).float().mean()),
        }  # fmt: skip


@torch.inference_mode()
def measure(model: str, count: int, tokens: int) -> list[dict[str, Any]]:
    from transformers import AutoModelForCausalLM

    folder = str(locate(model, "float32", local_files_only=True, on_convert=print))
    hf = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    linear = {name: part for name, part in hf.model.layers.named_modules() if isinstance(part, torch.nn.Linear)}
    own = {name: part.weight.detach().clone() for name, part in linear.items()}
    predictions, rows = Predictions(windows(folder, count, tokens), hf), []
    for facts, make in ways():
        other = hf
        if make is None:
            other = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).eval()
        else:
            for name, part in linear.items():
                part.weight.copy_(make(own[name]))
        rows.append({**facts, **predictions.distance(other)})
        print(rows[-1], file=sys.stderr, flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--windows", type=int, default=4)
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    rows = measure(asked.model, asked.windows, asked.tokens)
    result = {
        "command": "python " + " ".join(sys.argv),
        "hardware": {**hardware(), "load_average": os.getloadavg()[0]},
        "model": asked.model,
        "tokens": asked.windows * asked.tokens,
        "rows": rows,
    }
    write_result(result, asked.out)


if __name__ == "__main__":
    main()
