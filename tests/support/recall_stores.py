"""Stores of the small trained model under several spellings, and a committed one that an earlier version made."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

from places import DATA
from typer.testing import CliRunner

from stratakv.runtime import Chat, KVConfig, Runtime
from stratakv.runtime.cli.app import app

(OLD,) = sorted((DATA / "stores").glob("recall_*"))
PAIRS = " ".join(f"k{i} v{i * 7 % 23}" for i in range(24))


def load(model: Path | str, store: Path, *, dtype: str = "bfloat16", **kv: Any) -> Runtime:
    return Runtime.load(model, dtype=dtype, kv=KVConfig(path=store, **{"host_gb": 0.05, "disk_gb": 0.05, **kv}))


def save(model: Path | str, store: Path, name: str, text: str = PAIRS, **kv: Any) -> None:
    with load(model, store, **kv) as runtime:
        chat = runtime.chat()
        chat.read_text(text)
        chat.save(name)


def sessions(store: Path, *words: str) -> str:
    result = CliRunner().invoke(app, ["sessions", words[0], "--kv-dir", str(store), *words[1:]])
    assert result.exit_code in (0, 2), result.exception
    return result.output


def with_setting(model: Path, folder: Path, **changes: Any) -> Path:
    shutil.copytree(model, folder)
    said = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**said, **changes}))
    return folder


def old_store(store: Path, prefix: str = "recall") -> Path:
    """A copy of the committed store, under another spelling's name."""
    folder = store / f"{prefix}_{OLD.name.rpartition('_')[2]}"
    shutil.copytree(OLD, folder)
    os.chmod(store, 0o700)
    os.chmod(folder, 0o700)
    for path in folder.iterdir():
        os.chmod(path, 0o600)
    return folder


def is_whole(chat: Chat) -> bool:
    """Whether every page was found."""
    return chat.restored == chat.num_tokens > 16
