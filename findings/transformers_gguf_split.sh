#!/usr/bin/env bash
# transformers makes up the weights that are in the other parts of a split GGUF file.
#
# Large models are published as NAME-00001-of-00003.gguf and so on; the first part has all keys and some of the tensors. Expected: the other
# parts beside it are read, as llama.cpp does, or loading fails. Seen: the model loads, the weights of all other parts are random numbers,
# and it answers nonsense; a warning lists them, if warnings are not off.
# In stratakv: a model is all parts (`runtime/model/gguf/files.py`), whichever was named, and a part alone is refused.
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
write("whole.gguf")
write("model.gguf", split_max_tensors=5)
weights = []
for name in ("whole.gguf", "model-00001-of-00003.gguf"):
    model, said = transformers.AutoModelForCausalLM.from_pretrained(".", gguf_file=name, output_loading_info=True)
    weights.append(model.state_dict())
    print(f"{name}: loaded, {len(said['missing_keys'])} weights made up")
same = [bool((weights[0][name] == weights[1][name]).all()) for name in weights[0]]
print(f"weights that are those of the whole file: {sum(same)} of {len(same)}")
sys.exit(0 if said["missing_keys"] and not all(same) else 1)
PY
echo "a part alone loads, and the rest is made up"
