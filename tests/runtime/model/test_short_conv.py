"""The convolution of each channel by itself: in one piece, in pieces and token by token the same."""

from __future__ import annotations

import pytest
import torch

from stratakv.runtime.model.short_conv import Taps


@pytest.mark.parametrize("has_bias", [False, True])
def test_pieces_are_the_whole(has_bias: bool) -> None:
    draw = torch.Generator().manual_seed(0)
    taps = Taps(6, 4, bias=has_bias).requires_grad_(False)
    for weight in taps.parameters():
        weight.normal_(generator=draw)
    rows = torch.randn(20, 6, generator=draw)
    padded = torch.nn.functional.pad(rows.T, (3, 0))
    expected = torch.nn.functional.conv1d(padded[None], taps.weight, taps.bias, groups=6)[0].T
    for ends in ((20,), (1, 2, 3, 9, 20), tuple(range(1, 21))):
        columns, start, found = torch.zeros(taps.columns), 0, []
        for end in ends:
            out, columns = taps(rows[start:end], columns)
            found.append(out)
            start = end
        assert torch.allclose(torch.cat(found), expected, atol=1e-6)
        assert torch.equal(columns, rows[-3:])
