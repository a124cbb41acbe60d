"""Runs `fuzz_child` over damaged files, watches it, and keeps the figures."""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

SECONDS = 2.0
"""Of processor time for one file, so that a busy machine fails nothing."""
_HUNG = 30.0
_ROOM_BYTES = 64 << 20
"""What a load may take besides twice the file: parsers and modules have buffers of their own."""


@dataclass
class Figures:
    outcomes: Counter[str] = field(default_factory=Counter)
    slowest: tuple[float, str] = (0.0, "")
    growth: tuple[int, str] = (0, "")
    failures: list[str] = field(default_factory=list)

    def line(self, what: str) -> str:
        seconds, slow = self.slowest
        grown, big = self.growth
        return (
            f"{what}: {sum(self.outcomes.values())} files, {self.outcomes['loaded']} loaded, "
            f"{self.outcomes['refused']} refused by a typed error, {len(self.failures)} failures; "
            f"slowest {seconds:.2f} s ({slow}); memory +{grown / 2**20:.1f} MiB ({big})"
        )


class Fuzz:
    """One child at a time; a fresh one after every failure."""

    def __init__(self, folder: Path, warm_up: list[Any]) -> None:
        self.figures = Figures()
        self._folder, self._warm_up = folder, warm_up
        self._child: subprocess.Popen[str] | None = None

    def __enter__(self) -> Fuzz:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._stop()

    def run(self, name: str, work: str, arguments: list[str], file_bytes: int, must_name: str = "") -> str:
        """Have the child do `work` and judge its answer; returns the outcome. `must_name` is in a refusal's message."""
        if self._child is None:
            self._start()
        reply = self._ask([work, arguments])
        problem = self._problem(reply, file_bytes, must_name)
        if problem:
            self.figures.failures.append(f"{name}: {problem}")
            self._stop()
        if reply is None:
            return "dead"
        self.figures.outcomes[reply["outcome"]] += 1
        self.figures.slowest = max(self.figures.slowest, (reply["seconds"], name))
        self.figures.growth = max(self.figures.growth, (reply["growth"], name))
        return str(reply["outcome"])

    def _problem(self, reply: dict[str, Any] | None, file_bytes: int, must_name: str) -> str:
        if reply is None:
            return f"the process hung or died; its last words: {self._last_words()}"
        if reply["outcome"] == "wrong":
            return str(reply["message"])
        if reply["outcome"] == "refused" and must_name not in reply["message"]:
            return f"the file is not named: {reply['message']}"
        if reply["seconds"] > SECONDS:
            return f"took {reply['seconds']:.1f} s"
        if reply["growth"] > 2 * file_bytes + _ROOM_BYTES:
            return f"memory grew by {reply['growth']} bytes for a file of {file_bytes}"
        return ""

    def _start(self) -> None:
        support = Path(__file__).parent
        environment = os.environ | {
            "XDG_CACHE_HOME": str(self._folder / "cache"), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1",
            "PYTHONPATH": os.pathsep.join([str(support), *filter(None, sys.path)]),
        }  # fmt: skip
        with (self._folder / "stderr").open("w") as errors:
            self._child = subprocess.Popen(
                [sys.executable, str(support / "fuzz_child.py")],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True, env=environment,
            )  # fmt: skip
        reply = self._ask(self._warm_up)
        assert reply is not None, self._last_words()
        assert reply["outcome"] == "loaded", f"the whole file: {reply}"

    def _ask(self, request: list[Any]) -> dict[str, Any] | None:
        child = self._child
        assert child is not None
        assert child.stdin is not None
        assert child.stdout is not None
        child.stdin.write(json.dumps(request) + "\n")
        child.stdin.flush()
        if not select.select([child.stdout], [], [], _HUNG)[0]:
            return None
        line = child.stdout.readline()
        return json.loads(line) if line else None

    def _last_words(self) -> str:
        return (self._folder / "stderr").read_text(errors="replace")[-600:]

    def _stop(self) -> None:
        if self._child is not None:
            self._child.kill()
            self._child.communicate()
            self._child = None
