#!/usr/bin/env bash
# `rope_scaling`, added to a config.json of transformers 5 as model pages say, takes the base frequency away.
#
# Pages of models tell people to switch YaRN on by adding `rope_scaling` to config.json. Files that transformers 5 writes have
# `rope_parameters`, with `rope_theta` in it. Where both are there, the one is taken for all that is said.
# Expected: the base of 10,000,000 that `rope_parameters` states, or an error. Seen: 10,000, without a word; other tokens from
# the first hundred on. A `rope_theta` that does not stand in `rope_parameters` but beside it is kept.
# In stratakv: `runtime/untrusted/rope.py` puts together what all spellings say, and refuses what contradicts itself.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet transformers==5.24.0
TRANSFORMERS_VERBOSITY=error "$folder/venv/bin/python" - <<'PY'
import sys
import transformers
from transformers import AutoConfig

print("transformers", transformers.__version__)
parameters = {"rope_type": "default", "rope_theta": 1e7}
scaling = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}
plain = AutoConfig.for_model("qwen2", rope_parameters=dict(parameters)).rope_parameters
both = AutoConfig.for_model("qwen2", rope_parameters=dict(parameters), rope_scaling=dict(scaling)).rope_parameters
print("rope_parameters alone:   ", plain)
print("and rope_scaling beside: ", both)
sys.exit(0 if plain["rope_theta"] == 1e7 and both["rope_theta"] == 1e4 else 1)
PY
echo "the base is gone"
