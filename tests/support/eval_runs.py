"""Runs of `stratakv eval` on a small model over the excerpt of the texts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from places import EXCERPT
from typer.testing import CliRunner, Result

from stratakv.runtime import KVConfig
from stratakv.runtime.cli.app import app


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["eval", *map(str, arguments)])


def evaluate(suite: str, model: Path, folder: Path, *arguments: object) -> dict[str, Any]:
    out = folder / "result.json"
    run = invoke("--suite", suite, "-m", model, "--texts", EXCERPT, "--out", out, *arguments)
    assert run.exit_code == 0, run.output
    result: dict[str, Any] = json.loads(out.read_text())
    for row in result["variants"]:
        assert row["label"] in run.output
        budget = KVConfig(budget=row["budget"]).budget_tokens(result["ctx"])
        assert row["tokens_read"] <= budget or row["index"] == "dense"
        assert row["kv_bytes_per_step"] > 0
    told = {"command", "hardware", "device", "version", "commit", "model", "dtype", "seed", "ctx", "samples", "texts"}
    assert told <= set(result)
    assert result["texts"] == "excerpt"
    return result


def rows(result: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {row["label"]: row for row in result["variants"]}
