"""Which weights decode multiplies with where nobody says so."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gguf_models import Entry, random_model, write_gguf
from gguf_packed import WIDE, typed

from stratakv.runtime.model.which_weights import which_weights
from stratakv.runtime.process import compiled

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _switched_on(monkeypatch: pytest.MonkeyPatch, own_cache: None) -> None:
    monkeypatch.setenv(compiled.SWITCH, "1")


def written(folder: Path, *kinds: str) -> str:
    path, model = folder / "m.gguf", random_model("llama", num_hidden_layers=1, **WIDE)
    write_gguf(path, model, "llama", change=typed([*kinds]))
    return str(path)


def chosen(model: str, dtype: str = "bfloat16", device: torch.device = CPU, kv_dtype: str = "auto") -> str:
    return which_weights("auto", model, device, dtype, kv_dtype)


@pytest.mark.parametrize(
    ("kinds", "in_float32", "in_bfloat16"),
    [
        (("Q4_0", "Q8_0", "Q4_K", "Q6_K"), "file", "file"),
        (("BF16",), "file", "file"),
        (("Q4_0", "F32"), "file", "own"),
        (("Q4_0", "F16"), "own", "own"),
    ],
    ids=str,
)
def test_a_gguf_files_if_all_of_it_is_best_read_there(
    kinds: tuple[str, ...], in_float32: str, in_bfloat16: str, tmp_path: Path
) -> None:
    model = written(tmp_path, *kinds)
    assert chosen(model, "float32") == in_float32
    assert chosen(model, "bfloat16") == in_bfloat16


def test_a_router_in_fp32_does_not_have_a_mixture_converted(tmp_path: Path) -> None:
    """As published files have it: among experts in a few bits it is nothing."""
    model, in_blocks = random_model("qwen3moe", num_hidden_layers=1, **WIDE, moe_intermediate_size=256), typed(["Q4_K"])

    def change(name: str, values: np.ndarray) -> list[Entry]:
        return [(name, values)] if "ffn_gate_inp" in name else [*in_blocks(name, values)]

    write_gguf(tmp_path / "m.gguf", model, "qwen3moe", change=change)
    assert chosen(str(tmp_path / "m.gguf")) == "file"


def test_int8_is_refused_before_a_mixture_is_converted(tmp_path: Path) -> None:
    write_gguf(tmp_path / "m.gguf", random_model("qwen3moe", num_hidden_layers=1), "qwen3moe")
    with pytest.raises(ValueError, match="int8 is for models without experts"):
        which_weights("int8", str(tmp_path / "m.gguf"), CPU, "bfloat16", "auto")
    for dense in ("llama", "gemma4"):  # of the second family some have experts
        write_gguf(tmp_path / "m.gguf", random_model(dense), dense)
        assert which_weights("int8", str(tmp_path / "m.gguf"), CPU, "bfloat16", "auto") == "int8"


@pytest.mark.parametrize(
    ("device", "dtype", "capability", "said"),
    [
        ("cpu", "bfloat16", (9, 0), "is for a GPU, not cpu; leave it out, or take a GGUF file of 4 bits"),
        ("cuda", "float16", (9, 0), "needs dtype bfloat16, not float16; leave it out, or use weights=int8"),
        ("cuda", "bfloat16", (7, 5), r"needs compute capability 8\.0 \(Ampere\) or later, not 7\.5; use weights=int8"),
    ],
)
def test_4_bits_are_refused_where_nobody_multiplies_with_them(
    device: str, dtype: str, capability: tuple[int, int], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda of: capability)
    with pytest.raises(ValueError, match=f"^weights=int4 {said}"):
        which_weights("int4", "any", torch.device(device), dtype, "auto")
    assert (
        which_weights("int4", "any", torch.device("cuda"), "bfloat16", "auto") == "int4" if capability[0] > 7 else True
    )
    assert which_weights("int8", "any", torch.device("cuda"), "float16", "auto") == "int8"


def test_a_model_whose_layers_are_not_all_known_has_its_own(tmp_path: Path) -> None:
    write_gguf(tmp_path / "m.gguf", random_model("lfm2", num_hidden_layers=2), "lfm2")
    assert chosen(str(tmp_path / "m.gguf"), "float32") == "own"
    for asked in ("int8", "file"):
        with pytest.raises(
            ValueError, match=f"^weights={asked} is for models whose layers are all known; leave it out"
        ):
            which_weights(asked, str(tmp_path / "m.gguf"), CPU, "float32", "auto")


@pytest.mark.parametrize(("is_scaled", "weights"), [(False, "file"), (True, "own")])
def test_a_matrix_with_a_factor_beside_it_is_converted(is_scaled: bool, weights: str, tmp_path: Path) -> None:
    in_blocks = typed(["Q8_0"])

    def change(name: str, values: np.ndarray) -> list[Entry]:
        factor = [("blk.0.ffn_down.scale", np.array([2.0], dtype=np.float32))]
        return [*in_blocks(name, values), *(factor if is_scaled and name == "blk.0.ffn_down.weight" else [])]

    write_gguf(tmp_path / "m.gguf", random_model("qwen2", num_hidden_layers=1, **WIDE), "qwen2", change=change)
    assert chosen(str(tmp_path / "m.gguf")) == weights


@pytest.mark.parametrize(
    "how", [{"dtype": "float16"}, {"device": torch.device("cuda")}, {"kv_dtype": "float16"}], ids=str
)
def test_the_models_own_where_pytorch_would_compute_steps(how: dict[str, Any], tmp_path: Path) -> None:
    model = written(tmp_path, "Q8_0")
    assert chosen(model) == "file"
    assert chosen(model, **how) == "own"


def test_the_models_own_without_compiled_decode(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = written(tmp_path, "Q8_0")
    monkeypatch.setenv(compiled.SWITCH, "0")
    assert chosen(model) == "own"
    monkeypatch.setenv(compiled.SWITCH, "1")
    monkeypatch.setattr(compiled, "find_spec", lambda name: None)
    assert chosen(model) == "own"


def test_the_models_own_where_there_is_no_gguf_file(tiny_llama: Path) -> None:
    assert chosen(str(tiny_llama)) == "own"
    assert chosen("nobody/has-it") == "own"


@pytest.mark.parametrize("asked", ["own", "int8", "file"])
def test_what_is_asked_for_is_used(asked: str, tmp_path: Path) -> None:
    model = written(tmp_path, "F16")
    assert which_weights(asked, model, CPU, "bfloat16", "auto") == asked


@pytest.mark.parametrize(
    ("dtype", "device", "switch", "needed"),
    [
        ("float16", "cpu", "1", "dtype float32 or bfloat16, not float16"),
        ("float32", "cpu", "0", "compiled decode: numba, and STRATAKV_COMPILED other than 0"),
        ("float32", "cuda", "1", "a CPU, not cuda"),
    ],
)
def test_why_a_files_cannot_be(
    dtype: str, device: str, switch: str, needed: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(compiled.SWITCH, switch)
    with pytest.raises(ValueError, match=f"^weights=file needs {needed}; leave it out, or use weights=own$"):
        which_weights("file", "m.gguf", torch.device(device), dtype, "auto")


def test_others_there_are_not() -> None:
    with pytest.raises(ValueError, match=r"^weights is auto, own, int8, int4 or file, not 'int2'$"):
        which_weights("int2", "m.gguf", CPU, "float32", "auto")
