"""Results of the suites as they are drawn and printed, written down instead of measured."""

from __future__ import annotations

from typing import Any

from stratakv.runtime.evaluation.variants import variants

MANY = [f"bounds:rank={rank}:bits=3" for rank in range(6)]
"""Indexes whose names have settings."""


def many_indexes() -> dict[str, Any]:
    """Of the fidelity suite: `MANY` at four budgets, between floor and ceiling."""
    made = []
    for number, variant in enumerate(variants([*MANY], [0.02, 0.05, 0.1, 0.25])):
        kl = 0.0 if number == 0 else 1 / number
        made.append(
            {**variant.as_dict(), "kl": kl, "kl_interval": (kl / 2, 2 * kl), "tokens_read": 4096 * variant.budget,
             "kl_over_oracle": 1.0 if number else None, "worst_context_kl": kl}
            | dict.fromkeys(("recall", "mass", "output_error", "kl_p99", "top1_agree"), 0.5)
            | {"perplexity_change": 0.25, "index_bytes": 8.0, "index_fixed_bytes": 2500.0}
        )  # fmt: skip
    return {**_about("fidelity"), "variants": made}


def exact() -> dict[str, Any]:
    """One check within its bound, one beyond it, one without an error, and one that counts."""
    checks = [
        {"name": "near", "error": 1e-6, "bound": 1e-4, "passed": True, "note": ""},
        {"name": "far", "error": 1e-3, "bound": 1e-4, "passed": False, "note": "in [layer]"},
        {"name": "none", "error": None, "bound": 1e-4, "passed": False, "note": "no number"},
        {"name": "counted", "error": 0.0, "bound": 0.0, "passed": True, "note": ""},
    ]
    return {"suite": "exact", "model": "m", "checks": checks}


def needles() -> dict[str, Any]:
    """Dense, and an index at two budgets that loses digits in turns."""

    def row(index: str, budget: int, shared: float, turns: float, lost: int) -> dict[str, Any]:
        modes = {
            name: {"digits": {"other": share, "only_dense": lost if name == "turns" else 0, "only_other": 0}}
            for name, share in (("shared", shared), ("turns", turns))
        }
        by_turn = {"0": {"other": shared}, "1": {"other": turns}}
        return {
            "label": f"{index}@{budget}", "index": index, "budget": budget, "tokens_read": float(budget),
            "modes": modes, "turns": by_turn, "worst_turn": -0.25, "worst_depth": 0.0,
        }  # fmt: skip

    made = [row("dense", 512, 1.0, 1.0, 0), row("bounds", 256, 0.875, 0.5, 7), row("bounds", 512, 1.0, 0.75, 3)]
    return {**_about("needles"), "needles": 2, "variants": made}


def tasks() -> dict[str, Any]:
    """Dense, and an index that keeps three quarters of the one task that dense can do."""

    def of(found: float, forced: float, *, intensive: bool = False) -> dict[str, Any]:
        return {"found": {"other": found}, "forced": {"other": forced}, "intensive": intensive, "empty": 2}

    gated = {"other": 0.75, "only_dense": 2, "only_other": 1}
    shared = {"budget": 512, "gated": ["qa_1"], "tokens_read": 500.0, "gated_found": gated, "worst_task": "qa_1"}
    made = [
        {**shared, "label": "dense", "index": "dense", "found_over_dense": 1.0, "forced_over_dense": 1.0,
         "by_task": {"qa_1": of(1.0, 0.9), "cwe": of(0.0, 0.2, intensive=True)}, "all_tasks": of(0.5, 0.6)},
        {**shared, "label": "bounds@512", "index": "bounds", "found_over_dense": 0.75, "forced_over_dense": None,
         "by_task": {"qa_1": of(0.75, 0.8), "cwe": of(0.0, 0.1, intensive=True)}, "all_tasks": of(0.375, 0.5),
         "gated": [], "gated_found": None, "worst_task": None},
    ]  # fmt: skip
    return {**_about("tasks"), "question": "exact", "tasks": ["qa_1", "cwe"], "variants": made}


def _about(suite: str) -> dict[str, Any]:
    return {
        "suite": suite, "model": "m", "dtype": "float32", "samples": 4, "ctx": 4096, "question": "sparse",
        "exempt_windows": [], "indexed_layers": 3,
    }  # fmt: skip
