"""The fidelity suite: what it reports of each variant, and which marks that meets.

A random model knows nothing, so these tests check arithmetic and structure.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from eval_runs import evaluate, rows
from places import EXCERPT
from tiny_models import reference_model

from stratakv.runtime import KVConfig, Runtime
from stratakv.runtime.evaluation.harness import Harness
from stratakv.runtime.evaluation.options import EvalOptions
from stratakv.runtime.evaluation.suites import fidelity
from stratakv.runtime.evaluation.texts import Texts


@pytest.fixture(autouse=True)
def _few_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of every variant in every context: what is done with the figures does not depend on how many there are."""
    monkeypatch.setattr(fidelity, "POSITIONS", 40)


def test_fidelity(tiny_llama: Path, tmp_path: Path) -> None:
    picture = tmp_path / "fidelity.png"
    result = evaluate(
        "fidelity", tiny_llama, tmp_path, "--samples", 4, "--ctx", 640, "--budget", "176,336", "--plot", picture
    )
    found = rows(result)
    assert list(found) == [
        "dense", "window@112", "window@176", "bounds@176", "oracle@176", "window@336", "bounds@336", "oracle@336",
    ]  # fmt: skip
    dense = found["dense"]
    assert (dense["kl"], dense["top1_agree"], dense["nll_change"]) == (0, 1, 0)
    assert (dense["mass"], dense["output_error"], dense["recall"]) == pytest.approx((1, 0, 1), abs=1e-5)
    assert found["oracle@176"]["recall"] == 1
    assert found["oracle@336"]["kl"] < found["oracle@176"]["kl"] < found["window@176"]["kl"]
    assert found["oracle@176"]["mass"] > found["bounds@176"]["mass"] > found["window@176"]["mass"]
    assert [context["source"] for context in dense["by_context"]] == ["novel", "novel", "verses", "docs"]
    for row in found.values():
        low, high = row["kl_interval"]
        assert low <= row["kl"] <= high
        assert row["worst_context_kl"] == max(context["kl"] for context in row["by_context"])
        assert ("misses" in row) == (row["index"] == "bounds")
        assert row["perplexity_change"] == pytest.approx(row["perplexity"] / dense["perplexity"] - 1, abs=1e-6)
        best = found.get(f"oracle@{row['budget']}")
        expected = None if best is None or row is dense else row["kl"] / best["kl"]
        assert row["kl_over_oracle"] == expected
    assert found["window@112"]["kl_over_oracle"] is None
    assert found["bounds@176"]["kl_over_oracle"] > found["oracle@176"]["kl_over_oracle"] == 1
    assert {row["index"]: row["index_bytes"] for row in found.values()} == {
        "dense": 0, "window": 0, "bounds": 2 * 8 * 4 / 16, "oracle": 8 * 4,
    }  # fmt: skip
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_budgets_may_be_shares_of_the_context(tiny_llama: Path, tmp_path: Path) -> None:
    """5 % of 512 tokens is less than what is always read: that much is read instead, and there is no second floor."""
    result = evaluate("fidelity", tiny_llama, tmp_path, "--samples", 1, "--ctx", 512, "--budget", "0.4,0.05")
    found = rows(result)
    assert list(found) == [
        "dense", "window@0.05", "bounds@0.05", "oracle@0.05", "window@0.4", "bounds@0.4", "oracle@0.4",
    ]  # fmt: skip
    assert found["oracle@0.05"]["tokens_read"] == 112
    assert 112 - 16 < found["window@0.05"]["tokens_read"] < 112
    assert 0.39 * 512 - 64 < found["oracle@0.4"]["tokens_read"] < 0.4 * 512  # contexts are shorter at first
    assert found["bounds@0.4"]["kl_over_oracle"] == found["bounds@0.4"]["kl"] / found["oracle@0.4"]["kl"]


def test_dense_perplexity_is_that_of_transformers(tiny_llama: Path, tmp_path: Path) -> None:
    """Positions and targets of the fidelity suite, against one forward pass over the same tokens."""
    result = evaluate("fidelity", tiny_llama, tmp_path, "--samples", 1, "--ctx", 512, "--budget", 176)
    with Runtime.load(tiny_llama, dtype="float32", kv=KVConfig(path=tmp_path / "kv")) as runtime:
        ((_, ids),) = fidelity.contexts(Harness(runtime, []), EvalOptions(512, 1), Texts(EXCERPT))
    tokens = torch.from_numpy(ids.astype(np.int64)).unsqueeze(0)
    with torch.inference_mode():
        logits = reference_model(tiny_llama)(tokens).logits[0]
    loss = torch.nn.functional.cross_entropy(logits[-fidelity.POSITIONS - 1 : -1], tokens[0, -fidelity.POSITIONS :])
    assert rows(result)["dense"]["perplexity"] == pytest.approx(loss.exp().item(), rel=1e-4)


@pytest.mark.parametrize(("kl", "misses"), [(0.001, 0), (0.4, 3)])
def test_four_contexts_that_agree_decide(kl: float, misses: int) -> None:
    def row(kl: float, top1: float) -> dict[str, Any]:
        contexts = [{"kl": kl, "top1_agree": top1}] * 4
        return {"kl": kl, "worst_context_kl": kl, "by_context": contexts}

    marks = fidelity._marks(row(kl, 1 - kl), row(0.001, 1.0), row(0.5, 0.5))
    assert list(marks.values()).count(False) == misses
    assert None not in marks.values()
