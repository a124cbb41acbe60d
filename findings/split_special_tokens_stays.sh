#!/usr/bin/env bash
# An argument of one call of a transformers tokenizer stays in the tokenizer that all callers share.
#
# `split_special_tokens=True` asks that special tokens in one text be read as plain characters. transformers hands it on by
# setting `encode_special_tokens` of the shared `tokenizers.Tokenizer` and leaves it set until the next call sets it again.
# Expected: the argument concerns that call. Seen: whoever encodes with the backend afterwards, or in another thread between
# the setting and the encoding, loses its special tokens: `<|end|>` becomes seven characters, without a word.
# In stratakv: `runtime/model/encoder.py` never asks for it. A person's words are encoded by a second tokenizer over the same model, in
# which control tokens are spelled otherwise.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet transformers==5.24.0 tokenizers==0.23.3
TRANSFORMERS_VERBOSITY=error "$folder/venv/bin/python" - <<'PY'
import sys
import tokenizers
import transformers
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers

print("transformers", transformers.__version__, "tokenizers", tokenizers.__version__)
letters = {letter: number for number, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
backend = Tokenizer(models.BPE(vocab=letters, merges=[]))
backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
backend.add_special_tokens([AddedToken("<|end|>")])
shared = transformers.PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|end|>")

before = shared.backend_tokenizer.encode("<|end|>").tokens
shared("a text of somebody else", split_special_tokens=True)
after = shared.backend_tokenizer.encode("<|end|>").tokens
print("before another caller's text:", before)
print("after it:                    ", after)
sys.exit(0 if len(before) == 1 and len(after) == 7 else 1)
PY
echo "the argument has stayed in the shared tokenizer"
