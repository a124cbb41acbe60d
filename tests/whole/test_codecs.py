"""Choosing how pages are written to disk: what a user may say, and what a lossy choice changes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from stratakv.runtime import KVConfig, Runtime
from stratakv.runtime.cli.app import app
from stratakv.runtime.layers.workspace import Workspace
from stratakv.storage import PageLayout

TEXT = "The lighthouse keeper wrote the log every evening, and hid the letter under the lamp. " * 12
LAYOUT = PageLayout(num_heads=2, page_size=16, head_dim=8, dtype="float32")
TINY_HOST = (Workspace.bytes_for(LAYOUT, 512) + 3 * 12 * LAYOUT.page_bytes) / 1e9
"""GB: a workspace, and 12 pages in each of three layers."""


def load(model: Path, folder: Path, codec: str, host_gb: float = TINY_HOST) -> Runtime:
    kv = KVConfig(path=folder, codec=codec, index="bounds", budget=112, local=32, host_gb=host_gb, disk_gb=0.1)
    return Runtime.load(model, dtype="float32", kv=kv)


def test_an_unknown_codec_is_refused_before_anything_is_loaded() -> None:
    with pytest.raises(ValueError, match=r"codec is one of raw, zstd, .*, adaptive, not 'gzip'"):
        KVConfig(codec="gzip")
    found = CliRunner().invoke(app, ["chat", "--codec", "gzip", "-p", "Hello?"])
    assert found.exit_code == 2
    assert found.stderr.startswith("stratakv: codec is one of raw, zstd, ")


def test_the_command_line_passes_it_on(tiny_llama: Path, tmp_path: Path) -> None:
    options = ["-m", str(tiny_llama), "--kv-dir", str(tmp_path), "-p", "Hello?", "-n", "3", "--json"]
    found = CliRunner().invoke(app, ["chat", *options, "--codec", "int4"])
    assert found.exit_code == 0, found.output
    stats = json.loads(found.stdout)["stats"]
    assert (stats["codec"], stats["int4_share"]) == ("int4", 1.0)


def test_only_a_run_with_the_same_lossy_codec_finds_its_pages(tiny_llama: Path, tmp_path: Path) -> None:
    """Lossless codecs share a store: their pages are the same bits."""
    for codec, cached in (("int8", False), ("int4", False), ("zstd", False), ("raw", True), ("int8", True)):
        with load(tiny_llama, tmp_path, codec, host_gb=1) as runtime:
            assert bool(runtime.chat().read_text(TEXT).cached) == cached, codec


@pytest.mark.parametrize("codec", ["int4", "kivi:bits=4"])
def test_a_chat_over_lossy_pages_resumes(codec: str, tiny_llama: Path, tmp_path: Path) -> None:
    with load(tiny_llama, tmp_path, codec) as runtime:
        chat = runtime.chat()
        chat.read_text(TEXT)
        chat.save("keeper")
        chat.send("Where is the letter?", max_new_tokens=24, ignore_eos=True)
        assert runtime.stats()["tiers"]["disk"]["page_reads"] > 0
        runtime.store.check_integrity()
    with load(tiny_llama, tmp_path, codec) as runtime:
        resumed = runtime.chat(session="keeper")
        assert resumed.restored == resumed.num_tokens
        assert len(resumed.send("Where is the letter?", max_new_tokens=24, ignore_eos=True).tokens) == 24
