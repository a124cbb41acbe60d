"""Models of rounded weights: which weights are, that nothing else lies beside them, and that all paths read them.

On a CPU the products are the formulas of `kernels.int4_product` and `kernels.int8_product`; all else is what a GPU
runs.
"""

from __future__ import annotations

import copy
import weakref
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from closeness import assert_close
from device_engines import Tiers, config, device_engine
from safetensors.torch import load_file
from tiny_models import FAMILIES, save_tiny_model
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from stratakv.runtime import KVConfig, Runtime
from stratakv.runtime.engine.profile import Profiles
from stratakv.runtime.model import packed, which_weights
from stratakv.runtime.model.decoder import Decoder
from stratakv.runtime.model.model import Model
from stratakv.runtime.model.model_files import read_configuration
from stratakv.runtime.model.packed import PackedLinear
from stratakv.runtime.model.packing import Packing, packed_names, packed_twin, replace
from stratakv.runtime.model.rounding import to_int4
from stratakv.runtime.model.weights import load_decoder

CPU = torch.device("cpu")
WIDE = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 16}
IDS = np.arange(3, 120, dtype=np.uint32)


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("packed"), "llama", vocab_size=320, **WIDE)


def packed_model(folder: Path, weights: str) -> Model:
    """As on a GPU: on a CPU `int8` has a form of its own."""
    own = Model.load(folder, CPU, torch.bfloat16)
    config = read_configuration(folder, "own")
    return Model(load_decoder(folder, config, torch.bfloat16, CPU, Packing(weights)), own.tokenizer)


def widened_twin(model: Model) -> Model:
    """The model of the same numbers as plain weights."""
    hf = copy.deepcopy(model.hf)
    for name, part in list(hf.named_modules()):
        if isinstance(part, PackedLinear):
            plain = torch.nn.Linear(part.in_features, part.out_features, bias=False)
            plain.weight = torch.nn.Parameter(part.widened().clone(), requires_grad=False)
            replace(hf, f"{name}.weight", plain)
    hf.packing = None
    twin = Model(hf, model.tokenizer)
    twin.prefill_dtype = model.dtype
    return twin


def logits(model: Model, folder: Path, kv: Path) -> Tensor:
    """Of the end of a prompt, and of a few steps behind it."""
    with Runtime.over(model, folder, KVConfig(path=kv, index="dense"), Profiles(folder, "tiny")) as runtime:
        runtime.engine.compiled = None
        sequence = runtime.engine.new_sequence()
        found = [runtime.engine.prefill(sequence, IDS, reuse=False).logits]
        found += [runtime.engine.decode([sequence], [token])[0] for token in (7, 8, 9)]
        return torch.stack([one for one in found if one is not None])


@pytest.mark.parametrize("weights", ["int4", "int8"])
def test_prompts_and_steps_read_the_rounded_weights(weights: str, llama: Path, tmp_path: Path) -> None:
    model = packed_model(llama, weights)
    assert model.weights == weights
    assert all(lean is not None for lean in model.lean)
    twin = widened_twin(model)
    found, expected = logits(model, llama, tmp_path / "a"), logits(twin, llama, tmp_path / "b")
    own = Model.load(llama, CPU, torch.bfloat16)
    own.prefill_dtype = torch.bfloat16
    away = logits(own, llama, tmp_path / "c")
    assert found.shape == (4, 320)
    assert (found - expected).norm() <= 3e-2 * expected.norm()
    assert 2 * (found - expected).norm(dim=-1).max() < (away - expected).norm(dim=-1).min()


@pytest.mark.parametrize("family", ["qwen2", "phi3", "qwen3_moe", "lfm2"])
def test_every_kind_of_layer_has_them(family: str, tmp_path: Path) -> None:
    sizes = {**WIDE, "head_dim": 16} if "head_dim" not in FAMILIES[family][1] else {**WIDE}
    folder = save_tiny_model(tmp_path / "model", family, **sizes)
    model = Model.load(folder, CPU, torch.bfloat16, "int4")
    twin = widened_twin(model)
    found, expected = logits(model, folder, tmp_path / "a"), logits(twin, folder, tmp_path / "b")
    assert (found - expected).norm() <= 4e-2 * expected.norm()


def test_the_weights_of_layers_are_rounded_and_nothing_else_is(tmp_path: Path) -> None:
    folder = save_tiny_model(tmp_path, "qwen2_moe", vocab_size=320, **{**WIDE, "shared_expert_intermediate_size": 64})
    decoder = Decoder(read_configuration(folder, "own"))
    names = {name.removeprefix("model.layers.0.") for name in packed_names(decoder) if ".layers.0." in name}
    experts = {f"mlp.experts.{at}.{part}_proj.weight" for at in range(5) for part in ("gate", "up", "down")}
    attention = {f"self_attn.{part}_proj.weight" for part in "qkvo"}
    assert names == attention | experts | {f"mlp.shared_expert.{part}_proj.weight" for part in ("gate", "up", "down")}
    assert not any("layers" not in name for name in packed_names(decoder))


@pytest.mark.parametrize("weights", ["int4", "int8"])
def test_a_step_asks_the_host_for_nothing(weights: str, llama: Path) -> None:
    """It runs with tensors that have no numbers, so a graph of it can be recorded."""
    model = packed_model(llama, weights)
    with FakeTensorMode(allow_non_fake_inputs=True):
        hidden, attended, table = (torch.zeros(*shape).bfloat16() for shape in ((3, 64), (3, 8, 16), (3, 1, 16)))
        for lean in model.lean:
            assert lean is not None
            q, k, v = lean.before(hidden, table, table)
            assert (q.shape, k.shape, v.shape) == ((3, 8, 16), (3, 4, 16), (3, 4, 16))
            assert lean.after(hidden, attended).shape == (3, 64)


@pytest.mark.parametrize("weights", ["int4", "int8"])
def test_whole_steps_on_the_device_read_them(weights: str, llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, found = packed_model(llama, weights), {}
    for switch in ("1", "0"):
        monkeypatch.setenv("STRATAKV_RESIDENT", switch)
        with device_engine(model, config("window"), Tiers()) as engine:
            assert (engine.resident is not None) == (switch == "1")
            sequence = engine.new_sequence()
            engine.prefill(sequence, IDS, reuse=False)
            found[switch] = torch.stack([engine.decode([sequence], [token])[0] for token in range(5, 15)])
    assert_close("logits", found["1"], found["0"], torch.bfloat16)


class Live(TorchDispatchMode):
    """Counts the bytes that operations make on the meta device, which stands for a GPU, while something holds them.
    What is empty stands for weights that are still to come."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._holders: dict[int, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        given = {one.untyped_storage()._cdata for one in args if isinstance(one, Tensor)}
        for one in out if isinstance(out, tuple | list) else [out]:
            if isinstance(one, Tensor) and one.device.type == "meta" and func is not torch.ops.aten.empty.memory_format:
                self._hold(one, given)
        return out

    def _hold(self, tensor: Tensor, given: set[int]) -> None:
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key not in self._holders:
            if key in given:  # a view of what is still to come
                return
            self.now += size
            self.peak = max(self.peak, self.now)
        self._holders[key] = self._holders.get(key, 0) + 1
        weakref.finalize(tensor, self._let_go, key, size)

    def _let_go(self, key: int, size: int) -> None:
        self._holders[key] -= 1
        if not self._holders[key]:
            del self._holders[key]
            self.now -= size


@pytest.mark.parametrize("weights", ["int4", "int8"])
def test_the_device_never_has_the_model_before_it_is_rounded(
    weights: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packed, "_NUMBERS", 2048)
    monkeypatch.setattr(packed, "to_int4", partial(to_int4, last=(15,)))
    folder = save_tiny_model(tmp_path, "llama", vocab_size=320, num_hidden_layers=6, **WIDE)
    config = read_configuration(folder, "own")
    with Live() as live:
        decoder = load_decoder(folder, config, torch.bfloat16, torch.device("meta"), Packing(weights))
    shapes = {name: tensor.shape for name, tensor in load_file(folder / "model.safetensors").items()}
    rounded = packed_names(Decoder(config))
    kept = sum(2 * shape.numel() for name, shape in shapes.items() if name not in rounded)
    there = sum(weight.nbytes for weight in decoder.parameters())
    assert there == kept + sum(Packing(weights).num_bytes(*shapes[name]) for name in rounded)
    assert there == Packing(weights).bytes_of(Decoder(config))
    largest = max(shapes[name].numel() for name in rounded)
    beside = live.peak - kept  # what a parameter holds at last is no longer counted
    assert 0 < beside <= 3 * largest + 16 * 4 * 2048, "codes of one weight, and some rows of it in fp32"
    assert beside < 0.5 * sum(2 * shapes[name].numel() for name in rounded)


def test_a_twin_has_rounded_weights_beside_those_of_the_model(llama: Path) -> None:
    own = Model.load(llama, CPU, torch.bfloat16)
    twin = Model(packed_twin(own.hf, Packing("int4")), own.tokenizer)
    assert (own.weights, twin.weights) == ("own", "int4")
    assert twin.inner.embed_tokens.weight is own.inner.embed_tokens.weight
    assert torch.equal(
        twin.inner.layers[1].mlp.down_proj.widened(),
        Packing("int4").pack(own.inner.layers[1].mlp.down_proj.weight, None, CPU).widened(),
    )
    with pytest.raises(ValueError, match="loaded with other weights cannot have weights=own; load it again"):
        twin.use_weights("own")
    with pytest.raises(ValueError, match="loaded with other weights cannot have weights=int4; load it again"):
        own.use_weights("int4")


def test_a_weight_that_cannot_be_packed_is_named_before_it_is_read(tiny_llama: Path) -> None:
    with pytest.raises(ValueError, match=r"^weights=int4 needs rows in multiples of 8 and columns in multiples of 32, "
                       r"not \[48, 48\] as model\.layers\.0\.self_attn\.q_proj has; leave it out"):  # fmt: skip
        Model.load(tiny_llama, CPU, torch.bfloat16, "int4")


def test_to_a_store_they_are_another_model(llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(which_weights, "require_device", lambda *given: None)
    kv = KVConfig(path=tmp_path / "kv", index="dense")
    cached = []
    for weights in ("own", "int4", "int4"):
        with Runtime.load(llama, device="cpu", dtype="bfloat16", weights=weights, kv=kv) as runtime:
            assert runtime.stats()["weights"] == weights
            assert runtime.engine.compiled is None or weights == "own"
            cached.append(runtime.engine.prefill(runtime.engine.new_sequence(), IDS).num_cached)
    assert cached == [0, 0, 112]
