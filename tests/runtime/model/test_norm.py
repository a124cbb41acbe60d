"""A decoder's norms beside PyTorch's. Each family's are held beside transformers' in `test_decoder`."""

from __future__ import annotations

from types import SimpleNamespace

import torch
import torch.nn.functional as F

from stratakv.runtime.model.norm import Norm
from stratakv.runtime.untrusted.family import Form


def test_a_norm_without_a_weight_divides_alone() -> None:
    x, config, form = torch.randn(3, 8), SimpleNamespace(rms_norm_eps=1e-5), Form(norm="wide")
    plain, weighted = Norm(None, config, form), Norm(8, config, form)
    assert list(plain.parameters()) == []
    torch.testing.assert_close(plain(x), F.rms_norm(x, (8,), None, 1e-5))
    with torch.no_grad():
        weighted.weight.fill_(3)
    torch.testing.assert_close(weighted(x), 3 * plain(x))


def test_what_is_added_is_the_models_unless_said_otherwise() -> None:
    x, config = torch.randn(3, 8), SimpleNamespace(rms_norm_eps=1e-5)
    own = Norm(None, config, Form(), 2.0)
    torch.testing.assert_close(own(x), F.rms_norm(x, (8,), None, 2.0))
