"""A GGUF file's weights as they stand in it: the same model as the converted one, and no copy of a matrix."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gguf_cases import CHANGES, cases
from gguf_models import random_model, tokenizer_keys, write_gguf
from gguf_packed import WIDE, typed

from stratakv.runtime import KVConfig, Runtime
from stratakv.runtime.api.errors import SessionError
from stratakv.runtime.process import compiled
from stratakv.runtime.sessions.elsewhere import names_by_settings

TYPES = ["Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q4_K", "Q5_K", "Q6_K", "F32", "F16", "BF16", "MXFP4"]
PROMPT = "A text that is read before, of some tokens: 0123456789." * 3


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("model.locate", "model.identity", "chat.runtime"):
        monkeypatch.setattr(f"stratakv.runtime.{module}.cache_dir", lambda: tmp_path / "cache")
    monkeypatch.setenv(compiled.SWITCH, "1")


def logits(path: Path, weights: str, batch: int = 1, **settings: Any) -> tuple[list[torch.Tensor], Runtime]:
    """After a prompt, and after each of some steps."""
    kv = KVConfig(**{"disk_gb": 0, "host_gb": 0.05, "page_size": 16, "index": "bounds", "budget": 4096, **settings})
    with Runtime.load(path, device="cpu", dtype="float32", weights=weights, kv=kv) as runtime:
        engine = runtime.engine
        ids = np.array(runtime.tokenizer(PROMPT).input_ids, dtype=np.uint32)
        sequences = [engine.new_sequence() for _ in range(batch)]
        found = [engine.prefill(sequence, ids[b:]).logits for b, sequence in enumerate(sequences)]
        for step in range(3):
            found += list(engine.decode(sequences, [40 + step + b for b in range(batch)]))
        found += list(engine.decode_known(sequences[0], np.arange(30, 52, dtype=np.uint32)))
        for sequence in sequences:
            sequence.close()
        return [one for one in found if one is not None], runtime


def assert_same(path: Path, **settings: Any) -> Runtime:
    own, _ = logits(path, "own", **settings)
    mine, runtime = logits(path, "file", **settings)
    for number, (one, other) in enumerate(zip(own, mine, strict=True)):
        scale = max(1.0, float(one.abs().max()))
        assert float((one - other).abs().max()) < 1e-4 * scale, number
        p, q = one.double().log_softmax(-1), other.double().log_softmax(-1)
        assert float((p.exp() * (p - q)).sum()) < 1e-6, number
    return runtime


@pytest.mark.parametrize("name", ["llama", "llama, biases", "llama, fused", "llama, scaled", "qwen2", "qwen3",
                                  "gemma3", "phi3", "olmo2", "smollm3", "mistral3", "granite", "cohere2", "glm4",
                                  "qwen2moe", "gemma4, experts", "gemma4, E2B", "gpt-oss"])  # fmt: skip
def test_every_family(name: str, tmp_path: Path) -> None:
    case = cases(64)[name]
    inner = CHANGES[case.change]() if case.change else None
    model = random_model(case.family, **case.settings)
    write_gguf(tmp_path / "m.gguf", model, case.family, keys=case.keys, change=typed(["Q8_0", "Q4_0", "Q8_0"], inner))
    assert_same(tmp_path / "m.gguf")


@pytest.mark.parametrize("kinds", [TYPES[:5], [*TYPES[5:8], "Q8_0"], [*TYPES[8:], "Q4_1"]], ids=",".join)
def test_every_type_side_by_side_and_several_sequences(kinds: list[str], tmp_path: Path) -> None:
    """q, k and v are of three types, gate and up of two."""
    model = random_model("llama", num_hidden_layers=2, attention_bias=True, **WIDE)
    write_gguf(tmp_path / "m.gguf", model, "llama", change=typed(kinds))
    runtime = assert_same(tmp_path / "m.gguf", batch=3)
    matrices = sum(w.numel() for w in model.parameters() if w.dim() == 2)
    assert runtime.model._in_file is not None
    held = runtime.model._in_file.held_bytes
    assert held == 0 if "F16" not in kinds else 0 < held < 2 * matrices, "what can stay in the file is in memory"


@pytest.mark.parametrize(
    "kinds", [["Q8_0"], ["Q4_K", "Q6_K", "Q8_0"], ["BF16", "Q5_1", "F32"], ["F16"], ["MXFP4"]], ids=",".join
)
def test_experts_of_every_kind_and_several_sequences(kinds: list[str], tmp_path: Path) -> None:
    """Gate, up and down are of several types, and sequences have experts of their own."""
    sizes = {**WIDE, "moe_intermediate_size": 256, "num_hidden_layers": 2, "num_experts_per_tok": 3}
    write_gguf(tmp_path / "m.gguf", random_model("qwen3moe", **sizes), "qwen3moe", change=typed(kinds))
    runtime = assert_same(tmp_path / "m.gguf", batch=3)
    assert runtime.engine.compiled is not None
    with torch.inference_mode():
        layer: Any = runtime.model.layer(0, prefill=True)
    assert layer.mlp.experts is runtime.model.inner.layers[0].mlp.experts, "all experts are made at once"


@pytest.mark.parametrize("index", ["bounds", "spectral"])
def test_layer_by_layer_and_by_pytorch(index: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where pages must be fetched, and where decode is not compiled, for a cache in float16."""
    write_gguf(tmp_path / "m.gguf", random_model("llama"), "llama", change=typed(["Q8_0", "Q5_1"]))
    assert_same(tmp_path / "m.gguf", index=index, budget=64, sink=16, local=16)
    if index == "bounds":
        own, _ = logits(tmp_path / "m.gguf", "own", dtype="float16")
        mine, runtime = logits(tmp_path / "m.gguf", "file", dtype="float16")
        assert runtime.engine.compiled is None
        assert all(float((a - b).abs().max()) < 1e-3 for a, b in zip(own, mine, strict=True))


def test_a_model_in_16_bits_is_rounded_to_much_less_than_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights are exact, and so is prefill, save where a processor multiplies 16 bits fast: not here. Steps multiply
    with hidden states rounded to 16 bits of the largest of each 32, where a converted model rounds all to the 8
    bits of bfloat16. The cache is exact here."""
    monkeypatch.setattr("stratakv.runtime.model.model.multiplies_slowly", lambda device, dtype: True)
    write_gguf(tmp_path / "m.gguf", random_model("llama"), "llama", change=typed(["Q8_0"]))
    exact, _ = logits(tmp_path / "m.gguf", "own")
    off = {}
    for weights in ("file", "own"):
        kv = KVConfig(disk_gb=0, host_gb=0.05, index="bounds", dtype="float32")
        with Runtime.load(tmp_path / "m.gguf", device="cpu", dtype="bfloat16", weights=weights, kv=kv) as runtime:
            sequence = runtime.engine.new_sequence()
            ids = np.array(runtime.tokenizer(PROMPT).input_ids, dtype=np.uint32)
            found = [runtime.engine.prefill(sequence, ids).logits]
            found += [runtime.engine.decode([sequence], [40 + step])[0] for step in range(3)]
            sequence.close()
        off[weights] = [float((a - b).abs().max()) for a, b in zip(exact, found, strict=False) if b is not None]
    assert off["file"][0] < 1e-4
    assert max(off["file"][1:]) < min(off["own"][1:]) / 32


def test_a_prompt_in_16_bits_is_rounded_as_a_converted_models_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where a processor multiplies 16 bits fast, prefill does, with the file's weights as with others."""
    monkeypatch.setattr("stratakv.runtime.model.model.multiplies_slowly", lambda device, dtype: False)
    write_gguf(tmp_path / "m.gguf", random_model("llama"), "llama", change=typed(["Q8_0"]))
    found = {}
    for weights in ("file", "own"):
        kv = KVConfig(disk_gb=0, host_gb=0.05, index="bounds")
        with Runtime.load(tmp_path / "m.gguf", device="cpu", dtype="bfloat16", weights=weights, kv=kv) as runtime:
            ids = np.array(runtime.tokenizer(PROMPT).input_ids, dtype=np.uint32)
            assert runtime.model.prefill_dtype is torch.bfloat16
            found[weights] = runtime.engine.prefill(runtime.engine.new_sequence(), ids).logits
    exact = logits(tmp_path / "m.gguf", "own")[0][0]
    off = {weights: float((found[weights] - exact).abs().max()) for weights in found}
    assert off["file"] < 1.5 * off["own"]


def test_no_matrix_is_copied(tmp_path: Path) -> None:
    """Neither to disk nor to memory: what tensors a loaded model has is small beside its file."""
    write_gguf(tmp_path / "m.gguf", random_model("llama", **WIDE), "llama", change=typed(["Q8_0"]))
    _, runtime = logits(tmp_path / "m.gguf", "file")
    size = (tmp_path / "m.gguf").stat().st_size
    model = runtime.model
    own = sum(w.nbytes for w in model.hf.parameters() if w.device.type != "meta")
    layers = max(w.nbytes for w in model._widened._held.values()) * 7
    assert own < 0.02 * size
    assert model._widened.num_bytes <= layers
    compiled_step = runtime.engine.compiled
    assert compiled_step is not None
    kept = {id(t): t.nbytes for form in compiled_step._forms.values() for t in form.rows._kept}
    assert sum(kept.values()) < 0.1 * size
    written = [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]
    assert not [path for path in written if path.suffix == ".safetensors"]


def test_a_reply_ends_where_the_file_says(tmp_path: Path) -> None:
    said = tokenizer_keys() | {"tokenizer.ggml.eos_token_ids": [2, 3]}
    write_gguf(tmp_path / "m.gguf", random_model("llama", num_hidden_layers=1), "llama", keys=said)
    ends = [logits(tmp_path / "m.gguf", weights)[1].model.eos_ids for weights in ("own", "file")]
    assert ends[0] == ends[1] >= {2, 3}


def test_a_directory_of_safetensors_has_no_such_file(tiny_llama: Path) -> None:
    with pytest.raises(ValueError, match=r"weights=file is for a GGUF file on this machine, and .* is none; leave it"):
        Runtime.load(tiny_llama, device="cpu", dtype="float32", weights="file")


def test_stores_keep_the_two_apart_and_both_names(tmp_path: Path) -> None:
    """Sessions are found by who computes as they were computed; neither folder takes the name from the other."""
    write_gguf(tmp_path / "m.gguf", random_model("llama"), "llama", change=typed(["Q8_0"]))
    parts = tmp_path / "parts"
    parts.mkdir()
    write_gguf(parts / "m.gguf", random_model("llama"), "llama", change=typed(["Q8_0"]), tensors_per_part=9)
    kv = KVConfig(path=tmp_path / "kv", host_gb=0.05, disk_gb=0.1)
    for weights in ("own", "file"):
        with Runtime.load(tmp_path / "m.gguf", device="cpu", dtype="float32", weights=weights, kv=kv) as runtime:
            assert runtime.sessions() == []
            chat = runtime.chat()
            chat.read_text("A short text to keep. ")
            chat.save(weights)
            assert runtime.stats()["weights"] == weights
    for weights in ("own", "file"):
        with Runtime.load(tmp_path / "m.gguf", device="cpu", dtype="float32", weights=weights, kv=kv) as runtime:
            assert runtime.sessions() == [weights]
            other = "file" if weights == "own" else "own"
            assert names_by_settings(runtime.store.disk) == {f"weights={other!r}": [other]}
            with pytest.raises(SessionError, match=rf"no session .*; there is one with weights='{other}' \(folder"):
                runtime.chat(session=other)
    for folder in (tmp_path / "kv").glob("*_*"):
        assert "former_names" not in (folder / "config.json").read_text()
    with Runtime.load(parts, device="cpu", dtype="float32", weights="file", kv=kv) as runtime:
        assert runtime.sessions() == ["file"], "a split file is the same model"


def test_a_file_that_is_written_to_ends_storing(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    write_gguf(path, random_model("llama"), "llama", change=typed(["Q8_0"]))
    kv = KVConfig(path=tmp_path / "kv", host_gb=0.05, disk_gb=0.1)
    with Runtime.load(path, device="cpu", dtype="float32", weights="file", kv=kv) as runtime:
        chat = runtime.chat()
        chat.read_text("A short text to keep, of more than a page. ")
        with path.open("r+b") as file:
            file.seek(-5, 2)
            file.write(b"other")
        with pytest.raises(SessionError, match="was written to while the model was in use"):
            chat.save("s")


def test_a_file_that_takes_its_place_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    write_gguf(path, random_model("llama"), "llama", change=typed(["Q8_0"]))
    with Runtime.load(
        path, device="cpu", dtype="float32", weights="file", kv=KVConfig(disk_gb=0, host_gb=0.05)
    ) as runtime:
        ids = np.arange(30, 60, dtype=np.uint32)
        sequence = runtime.engine.new_sequence()
        before = runtime.engine.prefill(sequence, ids, reuse=False).logits
        sequence.close()
        write_gguf(tmp_path / "other.gguf", random_model("llama", seed=1), "llama", change=typed(["Q8_0"]))
        (tmp_path / "other.gguf").replace(path)
        sequence = runtime.engine.new_sequence()
        after = runtime.engine.prefill(sequence, ids, reuse=False).logits
        sequence.close()
        assert before is not None
        assert after is not None
        assert torch.equal(before, after)
