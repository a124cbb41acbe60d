#!/usr/bin/env bash
# transformers' gated delta rule loses digits in prefill where a head forgets fast.
#
# A delta net lets its state fade by exp(g) at each token. Many tokens are computed 64 at a time, and how much of one is left at another is
# the exponential of the difference of two sums of g, which transformers takes in fp32. Expected: prefill gives what its own step by step
# function gives, to fp32's rounding (1e-7 to 1e-6 of the largest number). Seen: where g is in the tens, the sums are in the hundreds, and
# prefill is off by 5e-6, fifty times as much; steps are right. So a text read in one piece and in several is not quite the same text to Qwen3.5 or Qwen3-Next.
# In stratakv: `kernels/delta_rule.py` takes the sums in fp64, and logits of these models are compared with transformers' to 1e-4
# (docs/decisions/0044).
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 transformers==5.24.0 numpy
TRANSFORMERS_VERBOSITY=error "$folder/venv/bin/python" - <<'PY' 2>/dev/null
import sys

import torch
import transformers
from transformers.models.qwen3_5 import modeling_qwen3_5 as qwen

torch.manual_seed(0)
tokens, heads, key, value = 192, 4, 32, 32
q, k = (torch.nn.functional.normalize(torch.randn(1, tokens, heads, key), dim=-1) for _ in range(2))
v, beta, draw = torch.randn(1, tokens, heads, value), torch.rand(1, tokens, heads), torch.rand(1, tokens, heads)


def exact(g):
    """The rule, token by token, in fp64."""
    state, outs = torch.zeros(heads, key, value, dtype=torch.float64), []
    for t in range(tokens):
        state = state * g[0, t].double().exp()[:, None, None]
        wrong = v[0, t].double() - torch.einsum("hkv,hk->hv", state, k[0, t].double())
        state = state + torch.einsum("hk,hv->hkv", k[0, t].double(), beta[0, t].double()[:, None] * wrong)
        outs.append(torch.einsum("hkv,hk->hv", state, q[0, t].double()) * key**-0.5)
    return torch.stack(outs)


print("transformers", transformers.__version__)
off = {}
for forgets in (0.1, 40.0):
    g = -forgets * draw
    for name in ("torch_chunk_gated_delta_rule", "torch_recurrent_gated_delta_rule"):
        out, _ = getattr(qwen, name)(q, k, v, g=g, beta=beta, initial_state=None, output_final_state=False)
        right = exact(g)
        off[name, forgets] = float((out[0] - right).abs().max() / right.abs().max())
        print(f"g from 0 to -{forgets}: {name} is off by {off[name, forgets]:.0e}")
sys.exit(not (off["torch_chunk_gated_delta_rule", 40.0] > 5 * off["torch_recurrent_gated_delta_rule", 40.0]
              and off["torch_chunk_gated_delta_rule", 40.0] > 5 * off["torch_chunk_gated_delta_rule", 0.1]))
PY
echo "many tokens at once lose what one after another keep"
