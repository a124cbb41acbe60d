"""Experts of a layer against a plain sum over tokens, and which layers have them."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from stratakv.runtime.model.mlp import Experts, activation, is_mixture, mixture_of_experts
from stratakv.runtime.untrusted.families import FAMILIES

CONFIG: dict[str, Any] = {
    "model_type": "qwen3_moe", "hidden_size": 16, "intermediate_size": 40, "hidden_act": "silu", "num_experts": 5,
    "num_experts_per_tok": 2, "moe_intermediate_size": 24, "norm_topk_prob": True,
}  # fmt: skip


@pytest.mark.parametrize("renormalises", [False, True])
@torch.inference_mode()
def test_a_token_is_what_its_experts_make_of_it(renormalises: bool) -> None:
    torch.manual_seed(0)
    config = SimpleNamespace(**CONFIG | {"norm_topk_prob": renormalises})
    experts: Any = Experts(config, FAMILIES["qwen3_moe"].form)
    for parameter in experts.parameters():
        parameter.normal_()
    x = torch.randn(2, 7, 16)
    shares, chosen = F.softmax(experts.gate(x), -1).topk(2)
    shares = shares / shares.sum(-1, keepdim=True) if renormalises else shares
    expected = torch.zeros_like(x)
    for b, t, k in torch.cartesian_prod(torch.arange(2), torch.arange(7), torch.arange(2)):
        expected[b, t] += shares[b, t, k] * experts.experts[chosen[b, t, k]](x[b, t])
    torch.testing.assert_close(experts(x), expected, rtol=1e-4, atol=1e-4)
    assert torch.equal(experts.mixed(x, experts.gate(x)), experts(x))


@torch.inference_mode()
def test_a_shared_expert_is_added_by_a_share_of_its_own() -> None:
    torch.manual_seed(0)
    config = SimpleNamespace(**CONFIG | {"model_type": "qwen2_moe", "shared_expert_intermediate_size": 12})
    experts: Any = Experts(config, FAMILIES["qwen2_moe"].form)
    for parameter in experts.parameters():
        parameter.normal_(0, 0.3)
    x = torch.randn(3, 16)
    gate, up, down = (getattr(experts.shared_expert, f"{name}_proj").weight for name in ("gate", "up", "down"))
    shared = (F.silu(x @ gate.T) * (x @ up.T)) @ down.T * torch.sigmoid(x @ experts.shared_expert_gate.weight.T)
    torch.testing.assert_close(experts(x) - experts.mixed(x, experts.gate(x)), shared, rtol=1e-4, atol=1e-5)


@torch.inference_mode()
def test_experts_that_are_clamped_have_biases_and_a_softmax_of_the_chosen() -> None:
    torch.manual_seed(0)
    of_family = {"model_type": "gpt_oss", "num_local_experts": 5, "intermediate_size": 24, "swiglu_limit": 1.5}
    experts: Any = mixture_of_experts(SimpleNamespace(**CONFIG | of_family), FAMILIES["gpt_oss"].form)
    for parameter in experts.parameters():
        parameter.normal_()
    x = torch.randn(9, 16)
    best, chosen = experts.gate(x).topk(2)
    expected = torch.zeros_like(x)
    for t, k in torch.cartesian_prod(torch.arange(9), torch.arange(2)):
        one = experts.experts[chosen[t, k]]
        gate, up = one.gate_proj(x[t]).clamp(max=1.5), one.up_proj(x[t]).clamp(-1.5, 1.5)
        expected[t] += best.softmax(-1)[t, k] * one.down_proj(gate * torch.sigmoid(1.702 * gate) * (1 + up))
    torch.testing.assert_close(experts(x), expected, rtol=1e-4, atol=1e-4)
    assert all(one.bias is not None for one in (experts.gate, experts.experts[0].gate_proj))


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, [1, 1, 1, 1]),
        ({"decoder_sparse_step": 2}, [0, 1, 0, 1]),
        ({"mlp_only_layers": [0, 2]}, [0, 1, 0, 1]),
        ({"mlp_only_layers": None, "decoder_sparse_step": 3}, [0, 0, 1, 0]),
        ({"model_type": "qwen3"}, [0, 0, 0, 0]),
    ],
    ids=str,
)
def test_which_layers_have_experts(settings: dict[str, Any], expected: list[int]) -> None:
    assert [int(is_mixture(SimpleNamespace(**CONFIG | settings), at)) for at in range(4)] == expected


@pytest.mark.parametrize("name", ["silu", "swish", "gelu", "relu", "gelu_pytorch_tanh", "quick_gelu"])
def test_activations(name: str) -> None:
    from transformers.activations import ACT2FN

    x = torch.linspace(-6, 6, 1001)
    assert torch.equal(activation(name)(x), ACT2FN[name](x))
