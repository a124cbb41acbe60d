#!/usr/bin/env bash
# transformers loses the scaling of positions from every GGUF file.
#
# Files say `llama.rope.scaling.*` (YaRN, linear) or hold `rope_freqs.weight` (Llama 3.1 to 3.3). Expected: `rope_parameters` of the loaded
# model say the same, or loading fails. Seen: they say `default`, and nothing is printed: the model has the positions of another one, which
# shows as worse answers the longer the text.
# In stratakv: GGUF files are read by `runtime/model/gguf`, where every key and tensor is used or refuses the file.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 transformers==5.24.0 gguf==0.19.0 accelerate==1.14.0 numpy
cd "$folder"
TRANSFORMERS_VERBOSITY=error "$folder/venv/bin/python" - <<'PY'
import sys

import gguf
import numpy as np
import transformers

def write(path, keys={}, extra={}, **how):
    """A valid Llama of one layer with random weights."""
    w, random = gguf.GGUFWriter(path, "llama", **how), np.random.default_rng(0)
    sizes = {"block_count": 1, "context_length": 8192, "embedding_length": 64, "feed_forward_length": 96, "rope.dimension_count": 16,
             "attention.head_count": 4, "attention.head_count_kv": 4, "attention.layer_norm_rms_epsilon": 1e-5, "rope.freq_base": 1e6}
    for name, value in {**sizes, **keys}.items():
        {str: w.add_string, int: w.add_uint32, float: w.add_float32}[type(value)](f"llama.{name}", value)
    w.add_tokenizer_model("gpt2"), w.add_tokenizer_pre("gpt-2"), w.add_token_list([f"<{n}>" for n in range(256)])
    w.add_token_types([1] * 256), w.add_token_merges(["< 0"]), w.add_bos_token_id(0), w.add_eos_token_id(1)
    draw = lambda *shape: (2 * shape[-1] ** -0.5 * random.standard_normal(shape)).astype(np.float32)
    one, b = np.ones(64, np.float32), "blk.0."
    weights = {"token_embd": draw(256, 64), "output_norm": one, "output": draw(256, 64), b + "attn_norm": one, b + "ffn_norm": one}
    weights |= {b + f"attn_{part}": draw(64, 64) for part in ("q", "k", "v", "output")}
    weights |= {b + "ffn_gate": draw(96, 64), b + "ffn_up": draw(96, 64), b + "ffn_down": draw(64, 96)}
    for name, value in {**weights, **extra}.items():
        w.add_tensor(name + ".weight", np.float32(value))
    w.write_header_to_file(), w.write_kv_data_to_file(), w.write_tensors_to_file(), w.close()


print("transformers", transformers.__version__)
write("yarn.gguf", {"rope.scaling.type": "yarn", "rope.scaling.factor": 4.0, "rope.scaling.original_context_length": 2048})
write("llama31.gguf", extra={"rope_freqs": np.linspace(1, 8, 8)})
found = []
for name in ("yarn.gguf", "llama31.gguf"):
    model = transformers.AutoModelForCausalLM.from_pretrained(".", gguf_file=name)
    found.append(model.config.rope_parameters)
    print(f"{name}: rope_parameters {found[-1]}")
sys.exit(0 if all(one["rope_type"] == "default" for one in found) else 1)
PY
echo "the scaling is gone without a word"
