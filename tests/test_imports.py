"""What a command imports: nothing that it does not use. Checked in processes of their own, by their modules."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from places import ROOT
from tiny_gguf import write_tiny_gguf

PROBE = """
import json, sys
from stratakv.runtime.cli.app import main
for command in json.loads(sys.argv[1]):
    sys.argv = ["stratakv", *command]
    try:
        main()
    except SystemExit as end:
        if end.code:
            sys.exit(f"{command} ends with {end.code}")
print()
print(json.dumps(sorted(sys.modules)))
"""
TENSORS = {"torch", "numpy", "transformers", "tokenizers", "safetensors"}
HEAVY = {
    "torch._dynamo", "torch._inductor", "torch.distributed.tensor", "torch.distributed.checkpoint", "sympy",
    "accelerate", "scipy.sparse", "sklearn", "faiss", "pandas", "transformers.models", "transformers.modeling_utils",
    "transformers.activations", "matplotlib", "gguf",
}  # fmt: skip
"""Of no use to one question that a chat answers with a Llama on a CPU; together they took six seconds to import."""


def modules_of(tmp_path: Path, *commands: list[str]) -> set[str]:
    """What a process has imported that ran some commands one after another."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-c", PROBE, json.dumps(commands)], env=environment | {"XDG_CACHE_HOME": str(tmp_path)},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    return set(json.loads(done.stdout.splitlines()[-1]))


def test_help_loads_no_tensor_library_and_no_rich(tmp_path: Path) -> None:
    commands = [[], ["chat"], ["plan"], ["bench"], ["eval"], ["sessions"], ["methods"]]
    found = modules_of(tmp_path, *([*command, "--help"] for command in commands))
    assert not (TENSORS | {"rich", "prompt_toolkit", "lmdb"}) & found


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With a saved session in it."""
    from stratakv.runtime import KVConfig, Runtime

    folder = tmp_path_factory.mktemp("store")
    with Runtime.load(ROOT / "tests/data/recall", kv=KVConfig(path=folder, disk_gb=0.1)) as runtime:
        chat = runtime.chat()
        chat.send("k1 v2 k3 v4 ? k1", max_new_tokens=1)
        chat.save("first")
    return folder


def test_looking_after_sessions_loads_no_tensor_library(store: Path, tmp_path: Path) -> None:
    commands = [["list"], ["show", "first"], ["verify"], ["gc"], ["rm", "first"]]
    found = modules_of(tmp_path, *(["sessions", *command, "--kv-dir", str(store)] for command in commands))
    assert "lmdb" in found
    assert not (TENSORS | {"rich", "prompt_toolkit"}) & found


def test_reading_a_gguf_file_loads_no_modelling_code(tmp_path: Path) -> None:
    probe = (
        "import json, sys, torch, pathlib; from stratakv.runtime.model.gguf import directory, weights_file\n"
        "found = directory.read_model([pathlib.Path(sys.argv[1])])\n"
        "weights_file.write_weights(pathlib.Path(sys.argv[2]), found.weights, torch.float32)\n"
        "print(json.dumps(sorted(sys.modules)))"
    )
    arguments = [str(write_tiny_gguf(tmp_path / "m.gguf")), str(tmp_path / "m.safetensors")]
    done = subprocess.run([sys.executable, "-c", probe, *arguments], capture_output=True, text=True, check=True)
    assert set(json.loads(done.stdout)) & HEAVY == {"gguf"}


def test_a_question_loads_the_tensor_library_and_little_else(tmp_path: Path) -> None:
    chat = ["chat", "-m", str(ROOT / "tests/data/recall"), "--disk-kv-gb", "0.1", "-p", "k1 v2 ? k1", "-n", "2"]
    found = modules_of(tmp_path, [*chat, "--device", "cpu"])
    assert {"torch", "transformers", "lmdb"} <= found
    assert not HEAVY & found
