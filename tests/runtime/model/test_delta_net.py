"""Delta nets as modules. That they are transformers' own is what `test_families` shows."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from stratakv.runtime.layers.recurrent import RecurrentLayer
from stratakv.runtime.model.delta_net import DeltaNet, GatedNorm

KEY_HEADS, HEADS, KEY, VALUE = 2, 6, 8, 4
CONFIG = SimpleNamespace(
    hidden_size=24, linear_num_key_heads=KEY_HEADS, linear_num_value_heads=HEADS, linear_key_head_dim=KEY,
    linear_value_head_dim=VALUE, linear_conv_kernel_dim=4, rms_norm_eps=1e-6,
)  # fmt: skip


def net(*, by_key_head: bool) -> DeltaNet:
    found = DeltaNet(CONFIG, 0, by_key_head=by_key_head)
    draw = torch.Generator().manual_seed(0)
    for name, weight in sorted(found.named_parameters()):
        if not name.startswith("in_proj"):
            weight.data = torch.randn(weight.shape, generator=draw)
    return found


def mixed(found: DeltaNet, hidden: Tensor) -> Tensor:
    layer = RecurrentLayer(0, found.shapes, 16, torch.device("cpu"))

    def mix(_: int, inputs: tuple[Tensor, ...], advance: Any) -> Tensor:
        return layer.mix(tuple(rows[0] for rows in inputs), advance).unsqueeze(0)

    with torch.inference_mode():
        out: Tensor = found(hidden, mix)
    return out


def test_rows_by_key_head_are_the_same_rows() -> None:
    """Of each key head q, k, and those of v and z for its value heads; so with b and a."""
    by_head, plain = net(by_key_head=True), net(by_key_head=False)
    draw = torch.Generator().manual_seed(1)
    each, wide = HEADS // KEY_HEADS, HEADS // KEY_HEADS * VALUE
    groups = torch.randn(KEY_HEADS, 2 * KEY + 2 * wide, 24, generator=draw)
    q, k, v, z = groups.split([KEY, KEY, wide, wide], 1)
    b, a = (pair := torch.randn(KEY_HEADS, 2 * each, 24, generator=draw)).chunk(2, 1)
    by_head.in_proj_qkvz.weight.data, by_head.in_proj_ba.weight.data = groups.flatten(0, 1), pair.flatten(0, 1)
    plain.in_proj_qkv.weight.data = torch.cat([part.flatten(0, 1) for part in (q, k, v)])
    for part, name in ((z, "z"), (b, "b"), (a, "a")):
        getattr(plain, f"in_proj_{name}").weight.data = part.flatten(0, 1)
    hidden = torch.randn(1, 9, 24, generator=draw)
    assert torch.allclose(mixed(by_head, hidden), mixed(plain, hidden), atol=1e-6)


def test_the_norm_behind_the_rule_is_that_of_a_head_times_its_gate() -> None:
    norm = GatedNorm(VALUE, 1e-6)
    norm.weight.data = torch.tensor([1.0, 2.0, 3.0, 4.0])
    x, gate = torch.randn(3, HEADS, VALUE, generator=torch.Generator().manual_seed(2)), torch.tensor(2.0)
    expected = x / x.pow(2).mean(-1, keepdim=True).sqrt() * norm.weight.data * (gate * gate.sigmoid())
    assert torch.allclose(norm(x, gate.expand(x.shape)), expected, atol=1e-5)
