#!/usr/bin/env bash
# llama.cpp does not read YaRN's betas from a Llama file.
#
# A GGUF file says with `llama.rope.scaling.yarn_beta_fast` and `yarn_beta_slow` from which frequencies on YaRN interpolates; llama.cpp has
# names for both keys. Expected: two files that differ in them have different logits, as the same numbers given as options make.
# Seen: the keys change nothing, 32 and 1 are used.
# In stratakv: the file's betas count, as in the model's own code, so logits of such files are not llama.cpp's (docs/MODELS.md).
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet xllamacpp==2026.10.11549 gguf==0.19.0 numpy
cd "$folder"
"$folder/venv/bin/python" - 2> /dev/null <<'PY'
import sys
from importlib.metadata import version

import gguf
import numpy as np
import xllamacpp

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


def likeliest(path, context, **settings):
    """The three likeliest tokens behind 100 tokens, with their log-probabilities."""
    p = xllamacpp.CommonParams()
    p.model.path, p.n_ctx, p.n_gpu_layers, p.n_parallel, p.warmup, p.fit_params, p.verbosity = path, context, 0, 1, False, False, -1
    for name, value in settings.items():
        setattr(p, name, value)
    prompt = [7 * n % 250 + 3 for n in range(100)]
    reply = xllamacpp.Server(p).handle_completions({"prompt": prompt, "n_predict": 1, "n_probs": 3, "temperature": 0})
    return [(one["id"], round(one["logprob"], 3)) for one in reply["choices"][0]["logprobs"]["content"][0]["top_logprobs"]]


print("xllamacpp", version("xllamacpp"))
yarn = {"rope.scaling.type": "yarn", "rope.scaling.factor": 4.0, "rope.scaling.original_context_length": 256}
write("plain.gguf", yarn)
write("betas.gguf", {**yarn, "rope.scaling.yarn_beta_fast": 32.0, "rope.scaling.yarn_beta_slow": 4.0})
plain, betas = likeliest("plain.gguf", 512), likeliest("betas.gguf", 512)
asked = likeliest("plain.gguf", 512, yarn_beta_slow=4.0)
print("no betas in the file:     ", plain)
print("beta_slow 4 in the file:  ", betas)
print("beta_slow 4 as an option: ", asked)
sys.exit(0 if plain == betas != asked else 1)
PY
echo "the betas of the file are not read"
