#!/usr/bin/env bash
# transformers splits a Qwen2's texts by its own rule, whatever the rule in tokenizer.json is.
#
# tokenizer.json says how a text is split before its bytes are joined. Expected: AutoTokenizer splits by that, as
# tokenizers does, since tokenizer_config.json names the class that is the file and nothing else. Seen: if config.json says
# qwen2, it takes that family's class instead, which keeps the vocabulary and puts its own rule, normalizer and decoder in
# place of the file's, without a word: digits are split one by one where the file says by threes. Models of that shape with
# another vocabulary get other tokens than they were trained with.
# In stratakv: `runtime/model/tokens.py` loads what was made of a GGUF file by the class that takes tokenizer.json as it is.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet transformers==5.24.0 tokenizers==0.23.3 jinja2
TRANSFORMERS_VERBOSITY=error HF_HUB_OFFLINE=1 "$folder/venv/bin/python" - "$folder" <<'PY'
import json
import sys
from pathlib import Path

import tokenizers
import transformers
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

print("transformers", transformers.__version__, "tokenizers", tokenizers.__version__)
letters = sorted(pre_tokenizers.ByteLevel.alphabet())
merges = [("1", "2"), ("12", "3")]
vocabulary = {token: number for number, token in enumerate([*letters, "12", "123", "<|endoftext|>"])}
tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
by_threes = pre_tokenizers.Split(Regex(r"\p{N}{1,3}"), "isolated")
tokenizer.pre_tokenizer = pre_tokenizers.Sequence([by_threes, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
tokenizer.decoder = decoders.ByteLevel()
differing = []
for family in ("llama", "qwen2", "qwen3", "gemma3_text"):
    model = Path(sys.argv[1]) / family
    model.mkdir()
    tokenizer.save(str(model / "tokenizer.json"))
    (model / "config.json").write_text(json.dumps({"model_type": family}))
    (model / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast"}))
    loaded = transformers.AutoTokenizer.from_pretrained(model)
    found = loaded.convert_ids_to_tokens(loaded("123", add_special_tokens=False).input_ids)
    print(f"{family}: tokenizers {tokenizer.encode('123').tokens}, AutoTokenizer {found} ({type(loaded).__name__})")
    differing += [family] if found != tokenizer.encode("123").tokens else []
sys.exit(0 if differing else 1)
PY
echo "the file's rule is not used"
