"""A sink is one more key with the value zero."""

from __future__ import annotations

import pytest
import torch
from closeness import assert_close

from stratakv.kernels.decode_attention import decode_attention
from stratakv.kernels.sinks import with_sinks


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_it_takes_its_share_of_the_softmax(dtype: torch.dtype) -> None:
    draw = torch.Generator().manual_seed(0)
    q, keys, values = (torch.randn(*s, generator=draw).to(dtype) for s in ((2, 3, 16), (2, 9, 16), (2, 9, 16)))
    sinks = torch.tensor([[-torch.inf, 0.0, 3.0], [80.0, -2.0, -80.0]])
    out, lse = decode_attention(q, [(keys, values)], scale=0.25)
    scores = torch.cat([q.double() @ keys.double().transpose(1, 2) * 0.25, sinks.double().unsqueeze(-1)], -1)
    expected = scores.softmax(-1)[..., :-1] @ values.double()
    assert_close("out", with_sinks(out, lse, sinks), expected.to(dtype), dtype)
    assert torch.equal(with_sinks(out, lse, sinks)[0, 0], out[0, 0])
