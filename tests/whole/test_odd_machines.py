"""Decode in compiled loops where something is missing that most machines have: a home, room in it, a second core."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from places import RECALL

from stratakv.runtime import KVConfig, Runtime

DOCUMENT = " ".join(f"k{number % 128} v{7 * number % 128}" for number in range(300))
ANSWER = """
import json, os, sys
if sys.argv[3] == "one core":
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
from stratakv.runtime import KVConfig, Runtime
with Runtime.load(sys.argv[1], device="cpu", kv=KVConfig(budget=128, host_gb=0.05)) as runtime:
    chat = runtime.chat()
    chat.read_text(sys.argv[2])
    text = chat.send("? k1", max_new_tokens=6).text
    print(json.dumps([text, runtime.engine.compiled is not None, runtime.plan.disk_bytes > 0]))
"""


def answered(cores: str, environment: dict[str, str | None]) -> tuple[list[object], str]:
    """The text, whether decode was compiled and whether there was a disk tier; and what was said beside it."""
    around = {name: value for name, value in {**os.environ, **environment}.items() if value is not None}
    done = subprocess.run(
        [sys.executable, "-c", ANSWER, str(RECALL), DOCUMENT, cores], env=around, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1]), done.stderr


@pytest.fixture(scope="module")
def runtime(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runtime]:
    kv = KVConfig(path=tmp_path_factory.mktemp("store"), host_gb=0.05, disk_gb=0.05, budget=128)
    with Runtime.load(RECALL, device="cpu", kv=kv) as runtime:
        yield runtime


def answer(runtime: Runtime) -> str:
    chat = runtime.chat()
    chat.read_text(DOCUMENT)
    return chat.send("? k1", max_new_tokens=6).text


@pytest.fixture(scope="module")
def expected(runtime: Runtime) -> str:
    return answer(runtime)


def test_with_one_core_and_no_home_in_the_environment(expected: str, tmp_path: Path) -> None:
    environment = {"HOME": None, "XDG_CACHE_HOME": str(tmp_path), "OMP_NUM_THREADS": None}
    assert answered("one core", environment)[0] == [expected, True, True]


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="needs a folder that nobody can write in")
def test_with_one_thread_and_a_home_that_cannot_be_written(expected: str, tmp_path: Path) -> None:
    """Compiled code is kept among temporary files; the cache has no disk tier."""
    kept = tmp_path / f"stratakv-{os.getuid()}"
    unfinished = shutil.ignore_patterns("*.tmp.*")  # what another test compiles meanwhile
    shutil.copytree(Path(os.environ["NUMBA_CACHE_DIR"]) / "stratakv", kept, ignore=unfinished)
    kept.chmod(0o700)
    before = sorted(kept.rglob("*.nbc"))
    environment = {
        "HOME": "/proc/self", "XDG_CACHE_HOME": None, "NUMBA_CACHE_DIR": None, "TMPDIR": str(tmp_path),
        "OMP_NUM_THREADS": "1",
    }  # fmt: skip
    found, told = answered("all cores", environment)
    assert found == [expected, True, False]
    assert "without a disk tier" in told
    assert sorted(kept.rglob("*.nbc")) == before


def test_two_threads_of_python_decode_at_once(runtime: Runtime, expected: str) -> None:
    """Two runtimes over one model: a team works for one of them at a time."""
    kv = KVConfig(host_gb=0.05, disk_gb=0, budget=128)
    with Runtime.load(RECALL, device="cpu", kv=kv) as other, ThreadPoolExecutor(2) as both:
        assert list(both.map(answer, (runtime, other))) == [expected, expected]
