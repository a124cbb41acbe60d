"""The child says that it saved when it has, and then waits; another process finds what it had read."""

from __future__ import annotations

import json
import signal
import sys
from pathlib import Path
from typing import Any

import pytest

from stratakv.runtime import KVConfig, Runtime
from stratakv.runtime.engine.sequence import GENERATED, PROMPT
from stratakv.runtime.evaluation.suites import save_and_wait
from stratakv.runtime.sessions import session

PROMPTED, KNOWN = list(range(3, 43)), [7, 5, 9]


def test_it_says_so_after_saving_and_then_waits(
    tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    kv = {"path": str(tmp_path / "kv"), "host_gb": 0.05, "disk_gb": 0.05}
    task = {"model": str(tiny_llama), "device": "cpu", "kv": kv, "session": "s", "prompt": PROMPTED, "known": KNOWN}
    said: list[tuple[str, str]] = []
    save = session.save

    def saving(*arguments: Any) -> None:
        save(*arguments)
        said.append(("saved", capsys.readouterr().out))

    monkeypatch.setattr(session, "save", saving)
    monkeypatch.setattr(signal, "pause", lambda: said.append(("waits", capsys.readouterr().out)))
    monkeypatch.setattr(sys, "argv", ["save_and_wait", json.dumps(task)])
    save_and_wait.main()
    assert said == [("saved", ""), ("waits", f"{save_and_wait.SAVED}\n")]

    with Runtime.load(tiny_llama, device="cpu", dtype="float32", weights="own", kv=KVConfig(**kv)) as runtime:
        sequence, notes, computed = session.load(runtime.engine, "s")
        assert sequence.tokens.tolist() == [*PROMPTED, *KNOWN]
        assert sequence.origins.tolist() == [PROMPT] * len(PROMPTED) + [GENERATED] * len(KNOWN)
        assert (notes, computed) == ({}, 0)
        sequence.close()
