"""A GGUF file is converted by itself: nothing that lies in its folder has a say."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tiny_gguf import write_tiny_gguf
from tiny_models import save_tiny_model

from stratakv.runtime.locate import locate


def converted(folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, bytes]:
    """Name -> content of what the model in `folder` is converted to."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
    target = locate(str(folder / "m.gguf"), "float32", on_convert=lambda name: None)
    return {path.name: path.read_bytes() for path in target.iterdir()}


def test_nothing_beside_a_gguf_file_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    alone, beset = tmp_path / "alone", tmp_path / "beset"
    alone.mkdir()
    write_tiny_gguf(alone / "m.gguf")
    save_tiny_model(beset)
    write_tiny_gguf(beset / "m.gguf")
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        (beset / name).write_text(json.dumps({"chat_template": "{{ evil }}", "pad_token": "evil"}))
    (beset / "config.json").write_text(json.dumps({"model_type": "llama", "auto_map": {"AutoConfig": "evil.Evil"}}))
    (beset / "generation_config.json").write_text(json.dumps({"eos_token_id": 77, "temperature": 9.0}))
    (beset / "added_tokens.json").write_text(json.dumps({"evil": 3}))
    (beset / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(alone)}))
    (beset / "chat_template.jinja").write_text("{{ evil }}")
    assert converted(beset, monkeypatch) == converted(alone, monkeypatch)
