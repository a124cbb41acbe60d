#!/usr/bin/env bash
# transformers gives OLMo 3's sliding layers another base frequency than the file says.
#
# A `config.json` as transformers 4 wrote it says `rope_theta` once, at the outermost level, for all layers. Expected: layers that see
# everything and layers that slide are both turned by it, as transformers 4.57 does. Seen: the first kind takes it, and with it the name
# is gone, so the second kind falls to the class's default, 500,000. Nothing is printed. The published models happen to say 500,000; one
# that says another has three of four layers turned wrongly, which shows as worse answers beyond some hundred tokens.
# In stratakv: what a file says about positions is read by `runtime/untrusted/rope.py`, where an outer `rope_theta` counts for both.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet transformers==5.24.0
TRANSFORMERS_VERBOSITY=error "$folder/venv/bin/python" - <<'PY' 2>/dev/null
import sys

import transformers

config = transformers.Olmo3Config(rope_theta=100_000.0)
found = {kind: table["rope_theta"] for kind, table in config.rope_parameters.items()}
print("transformers", transformers.__version__)
print("config.json says rope_theta 100000.0; the tables have", found)
sys.exit(found != {"full_attention": 100_000.0, "sliding_attention": 500_000.0})
PY
echo "layers that slide have the default"
