"""What makes two model directories one model, and what makes them two."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from places import RECALL

from stratakv.runtime.model import digests, identity
from stratakv.runtime.model.identity import model_key
from stratakv.runtime.sessions.home import prefix

Change = Callable[[Path], None]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stratakv.runtime.model.locate.cache_dir", lambda: tmp_path / "cache")


def says(**changes: Any) -> Change:
    """`config.json` with these names, or without those that are None here."""

    def change(folder: Path) -> None:
        path = folder / "config.json"
        found = {**json.loads(path.read_text()), **changes}
        path.write_text(json.dumps({name: value for name, value in found.items() if value is not ABSENT}))

    return change


ABSENT = object()
YARN = {"rope_type": "yarn", "rope_theta": 1e6, "factor": 4.0, "original_max_position_embeddings": 2048}


def weights(change: Callable[[dict[str, torch.Tensor]], Any], metadata: dict[str, str] | None = None) -> Change:
    def apply(folder: Path) -> None:
        path = folder / "model.safetensors"
        tensors = safetensors.torch.load_file(path)
        change(tensors)
        safetensors.torch.save_file(tensors, path, metadata)

    return apply


def rewritten(folder: Path) -> None:
    """Other white space and another order of names."""
    for name in ("config.json", "tokenizer.json"):
        found = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps(dict(reversed(found.items())), indent=7))


def in_two_files(folder: Path) -> None:
    tensors = safetensors.torch.load_file(folder / "model.safetensors")
    names = sorted(tensors)
    files = {"model-00001-of-00002.safetensors": names[1::2], "model-00002-of-00002.safetensors": names[::2]}
    for file, some in files.items():
        safetensors.torch.save_file({name: tensors[name] for name in some}, folder / file, {"format": "pt"})
    where = {name: file for file, some in files.items() for name in some}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))
    (folder / "model.safetensors").unlink()


def reversed_in_file(folder: Path) -> None:
    """The same tensors in the opposite order of bytes, as another writer may lay them out."""
    path = folder / "model.safetensors"
    data = path.read_bytes()
    size = int.from_bytes(data[:8], "little")
    header, body = json.loads(data[8 : 8 + size]), data[8 + size :]
    header.pop("__metadata__", None)
    entries, parts, at = {}, [], 0
    for name, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"], reverse=True):
        begin, end = entry["data_offsets"]
        parts.append(body[begin:end])
        entries[name] = {**entry, "data_offsets": [at, at + end - begin]}
        at += end - begin
    text = json.dumps(entries).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + b"".join(parts))


def other_tokenizer(folder: Path) -> None:
    found = json.loads((folder / "tokenizer.json").read_text())
    found["normalizer"] = {"type": "Lowercase"}
    (folder / "tokenizer.json").write_text(json.dumps(found))


def flipped(tensors: dict[str, torch.Tensor]) -> None:
    tensors["model.norm.weight"].view(torch.int32)[3] ^= 1


def swapped(tensors: dict[str, torch.Tensor]) -> None:
    one, two = "model.layers.0.self_attn.k_proj.weight", "model.layers.0.self_attn.v_proj.weight"
    tensors[one], tensors[two] = tensors[two].clone(), tensors[one].clone()


SAME: dict[str, Change] = {
    "a copy": lambda folder: None,
    "white space and order": rewritten,
    "another version of transformers": says(transformers_version="99.0.0"),
    "where it came from": says(_name_or_path="/home/me/a"),
    "architectures": says(architectures=ABSENT),
    "dtype by its older name": says(dtype=ABSENT, torch_dtype="bfloat16"),
    "use_cache": says(use_cache=False),
    "other ends of a reply": says(eos_token_id=[0, 5], pad_token_id=3, bos_token_id=None),
    "training": says(attention_dropout=0.1, initializer_range=0.5),
    "a name no family knows": says(rope_interleaved=False, my_note={"a": [1]}),
    "RoPE as transformers 4 wrote it": says(rope_parameters=ABSENT, rope_theta=1000000, rope_scaling=None),
    "RoPE half and half": says(rope_parameters={"type": "default"}, rope_theta=1e6),
    "usual values left out": says(attention_bias=ABSENT, mlp_bias=ABSENT, pretraining_tp=ABSENT),
    "usual values said": says(layer_types=None, attn_logit_softcapping=None, use_bidirectional_attention=False),
    "a longer window": says(max_position_embeddings=16384),
    "a whole number as such": says(rope_parameters={"rope_theta": 1000000, "rope_type": "default"}),
    "generation settings": lambda folder: (folder / "generation_config.json").unlink(),
    "another tokenizer": other_tokenizer,
    "weights in two files": in_two_files,
    "weights in another order": reversed_in_file,
    "metadata of the weights": weights(lambda tensors: None, {"format": "np", "made by": "somebody"}),
    "a file beside it": lambda folder: (folder / "consolidated.safetensors").write_bytes(b"x"),
}
OTHER: dict[str, Change] = {
    "eps": says(rms_norm_eps=1e-5),
    "theta": says(rope_parameters={"rope_theta": 1e5, "rope_type": "default"}),
    "scaled RoPE": says(rope_parameters={"rope_theta": 1e6, "rope_type": "linear", "factor": 2.0}),
    "bias": says(attention_bias=True),
    "activation": says(hidden_act="gelu"),
    "heads": says(num_attention_heads=2, head_dim=64),
    "tied": says(tie_word_embeddings=False),
    "family": says(model_type="mistral"),
    "one bit": weights(flipped),
    "two tensors in each other's place": weights(swapped),
    "the same values in another type": weights(
        lambda tensors: tensors.update({"model.norm.weight": tensors["model.norm.weight"].to(torch.float64)})
    ),
}


def changed(folder: Path, *changes: Change) -> Path:
    shutil.copytree(RECALL, folder)
    for change in changes:
        change(folder)
    return folder


@pytest.mark.parametrize("change", SAME.values(), ids=SAME)
def test_what_changes_no_number_changes_no_name(tmp_path: Path, change: Change) -> None:
    assert model_key(changed(tmp_path / "a", change)) == model_key(RECALL)


@pytest.mark.parametrize("change", OTHER.values(), ids=OTHER)
def test_what_may_change_a_number_is_another_model(tmp_path: Path, change: Change) -> None:
    assert model_key(changed(tmp_path / "a", change)) != model_key(RECALL)


def test_the_window_counts_where_positions_are_scaled_by_it(tmp_path: Path) -> None:
    one = changed(tmp_path / "a", says(rope_parameters=YARN))
    two = changed(tmp_path / "b", says(rope_parameters=YARN, max_position_embeddings=16384))
    assert model_key(one) != model_key(two)


def test_rope_of_families_that_merge_it_is_kept_as_it_is_said(tmp_path: Path) -> None:
    """Gemma's configuration reads these pairs differently, though they look like spellings of one thing."""
    linear, flat = {"rope_type": "linear", "factor": 8.0}, {"rope_type": "default", "rope_theta": 100.0}
    nested = {name: {"rope_type": "default", "rope_theta": 10000.0} for name in ("full_attention", "sliding_attention")}
    said: list[dict[str, Any]] = [
        {"rope_scaling": linear}, {"rope_scaling": {"type": "linear", "factor": 8.0}},
        {"rope_scaling": linear, "rope_parameters": nested}, {"rope_parameters": nested},
        {"rope_parameters": flat}, {"rope_parameters": {**flat, "rope_theta": 7.0}},
        {"rope_parameters": nested, "max_position_embeddings": 77},
    ]  # fmt: skip
    gemma = says(model_type="gemma3_text", rope_scaling=None, rope_parameters=None, rope_theta=None)
    keys = [model_key(changed(tmp_path / str(n), gemma, says(**each))) for n, each in enumerate(said)]
    assert len(set(keys)) == len(said)
    again = model_key(changed(tmp_path / "again", gemma, says(rope_scaling={"factor": 8, "rope_type": "linear"})))
    assert again == keys[0]


def test_weights_are_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(digests, "time_ns", lambda: time.time_ns() + 10**10)  # the files are settled
    folder = changed(tmp_path / "a")
    first = model_key(folder)
    monkeypatch.setattr(identity, "_tensor", lambda *_: pytest.fail("read again"))
    assert model_key(folder) == first


def test_where_nothing_can_be_remembered_it_is_only_slower(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "cache").write_text("no folder")
    assert model_key(changed(tmp_path / "a")) == model_key(RECALL)


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        ("smollm2", "smollm2"), ("HuggingFaceTB/SmolLM2-135M", "SmolLM2-135M"), ("/x/Qwen2.5-0.5B", "Qwen2.5-0.5B"),
        ("/x/model.Q4_1.gguf", "model.Q4_1"), ("/", "model"), ("/x/-rf", "rf"), ("/x/...", "model"),
        ("/x/a\nb", "a_b"), ("/x/a\udcffb", "a_xffb"), ("/x/" + "ж" * 200, "ж" * 50), ("/x/мой", "мой"),
    ],
)  # fmt: skip
def test_a_folder_has_a_good_name(model: str, expected: str) -> None:
    assert prefix(model) == expected


def test_a_folder_is_not_called_point(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert [prefix(name) for name in (".", "./", "../here", "..")] == ["here"] * 3 + [tmp_path.name]
