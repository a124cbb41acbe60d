"""How many OpenMP threads there are: chosen before torch is loaded, unless the user has chosen."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from stratakv.runtime.process import threads

LIBRARY = "from stratakv.runtime import Runtime"
COMMAND = """
import sys
from stratakv.runtime.cli.app import main
sys.argv = ["stratakv", "sessions", "list", "--kv-dir", "no-such-folder"]
try:
    main()
except SystemExit:
    pass
"""
TORCH_FIRST = "import torch\nfrom stratakv.runtime import Runtime"
REPORT = """
import json, os, torch
print(json.dumps({"threads": torch.get_num_threads(), "environment": dict(os.environ)}))
"""


def run(program: str, **environment: str) -> dict[str, Any]:
    """What a process is left with after `program`, which may use one processor's worth of time."""
    clean = {name: value for name, value in os.environ.items() if name not in threads._COUNTS}
    quota = "from stratakv.runtime.process import threads\nthreads._quotas = lambda system: [1.0]\n"
    asked = [sys.executable, "-c", quota + program + REPORT]
    done = subprocess.run(asked, env=clean | environment, capture_output=True, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def test_the_library_keeps_the_quota_and_leaves_the_environment_as_it_was() -> None:
    left = run(LIBRARY)
    assert left["threads"] == 1
    assert "OMP_NUM_THREADS" not in left["environment"]


def test_the_command_keeps_the_quota() -> None:
    left = run(COMMAND)
    assert left["threads"] == 1
    assert left["environment"]["OMP_NUM_THREADS"] == "1" or len(threads.processors()) == 1


@pytest.mark.parametrize("program", [LIBRARY, COMMAND])
def test_what_the_user_chose_stays(program: str) -> None:
    left = run(program, OMP_NUM_THREADS="2")
    assert left["threads"] == min(2, len(threads.processors()))
    assert left["environment"]["OMP_NUM_THREADS"] == "2"


def test_nothing_changes_where_torch_is_loaded_already() -> None:
    left = run(TORCH_FIRST)
    assert left["threads"] == len(threads.processors())
    assert "OMP_NUM_THREADS" not in left["environment"]


def machine(root: Path, monkeypatch: pytest.MonkeyPatch, siblings: list[str], cgroup: str = "", **files: str) -> Path:
    """A made-up system: `siblings` of each processor, all of which this process may run on, and control groups."""
    monkeypatch.setattr(threads, "processors", lambda: set(range(len(siblings))))
    for number, listed in enumerate(siblings):
        topology = root / f"sys/devices/system/cpu/cpu{number}/topology"
        topology.mkdir(parents=True)
        (topology / "thread_siblings_list").write_text(listed + "\n")
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/self/cgroup").write_text(cgroup)
    for name, text in files.items():
        path = root / "sys/fs/cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


FOUR = ["0", "1", "2", "3"]


def test_two_threads_of_a_core_count_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert threads.num_threads(machine(tmp_path, monkeypatch, ["0,2", "1,3", "0,2", "1,3"])) == 2


@pytest.mark.parametrize(
    ("cgroup", "files", "expected"),
    [
        ("", {}, 4),
        ("0::/\n", {"cpu.max": "max 100000\n"}, 4),
        ("0::/\n", {"cpu.max": "200000 100000\n"}, 2),
        ("0::/\n", {"cpu.max": "150000 100000\n"}, 2),  # a thread and a half: two, of which one rests at times
        ("0::/\n", {"cpu.max": "20000 100000\n"}, 1),
        ("0::/\n", {"cpu.max": "900000 100000\n"}, 4),
        ("0::/a/b\n", {"a/b/cpu.max": "max 100000\n", "a/cpu.max": "200000 100000\n"}, 2),
        ("0::/the/host/names/this\n", {"cpu.max": "200000 100000\n"}, 2),
        ("0::/../outside\n", {"cpu.max": "200000 100000\n"}, 2),
        ("4:cpu,cpuacct:/job\n", {"cpu/job/cpu.cfs_quota_us": "300000", "cpu/job/cpu.cfs_period_us": "100000"}, 3),
        ("4:cpu,cpuacct:/\n", {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, 4),
        ("4:memory:/\n", {"cpu/cpu.cfs_quota_us": "100000", "cpu/cpu.cfs_period_us": "100000"}, 4),
        ("0::/\n", {"cpu.max": "nonsense\n"}, 4),
    ],
)
def test_a_quota_is_kept(
    cgroup: str, files: dict[str, str], expected: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert threads.num_threads(machine(tmp_path, monkeypatch, FOUR, cgroup, **files)) == expected


def test_a_system_that_tells_nothing_has_a_core_per_processor(tmp_path: Path) -> None:
    assert threads.num_threads(tmp_path) == len(threads.processors())
