"""What llama.cpp makes of the texts in `vocabularies`, kept in tests/data/tokens for machines without it.

python tests/support/llama_tokens.py       writes it anew; needs `.[compare]`
"""

from __future__ import annotations

import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from places import TESTS
from vocabularies import MIXED, TEXTS, VOCABULARIES, byte_letters, pieces_keys

DATA = TESTS / "data" / "tokens"


def pieces(rule: str, folder: Path) -> dict[str, list[str]]:
    """Text -> the words that it is split into."""
    keys = pieces_keys(rule)
    bytes_of = {letter: byte for byte, letter in enumerate(byte_letters())}
    llama = _open(keys, folder)
    found = {}
    for text in TEXTS:
        tokens = [keys["tokenizer.ggml.tokens"][number] for number in llama.tokenize(text)]
        found[text] = [bytes(bytes_of[letter] for letter in token).decode() for token in tokens]
    llama.close()
    return found


def ids(keys: dict[str, Any], folder: Path) -> dict[str, Any]:
    """`ends`: ids that end a reply. `texts`: text -> its ids as a template's text, and as a person's."""
    llama = _open(keys, folder)
    ends = [number for number in range(llama.vocabulary_size) if llama.ends(number)]
    texts = {text: [llama.tokenize(text, special=True, begin=True), llama.tokenize(text)] for text in MIXED}
    llama.close()
    return {"ends": ends, "texts": texts}


def _open(keys: dict[str, Any], folder: Path) -> Any:
    from gguf_models import random_model, tokenizer_keys, write_gguf

    from stratakv.runtime.bench.llama_c import LlamaModel

    model = random_model("llama", vocab_size=len(keys["tokenizer.ggml.tokens"]), num_hidden_layers=1)
    said = {**dict.fromkeys(tokenizer_keys()), **keys}
    (path,) = write_gguf(folder / "vocabulary.gguf", model, "llama", keys=said)
    return LlamaModel(path, context=8)


def main() -> None:
    from stratakv.runtime.model.gguf.pre_tokenizers import RULES

    DATA.mkdir(exist_ok=True)
    with TemporaryDirectory() as name:
        folder = Path(name)
        split = {rule: pieces(rule, folder) for rule, found in RULES.items() if found.byte_level}
        joined = {name: ids(keys, folder) for name, keys in VOCABULARIES.items()}
    alike: dict[str, list[str]] = {}
    for rule, found in split.items():
        alike.setdefault(json.dumps(found, ensure_ascii=False), []).append(rule)
    kept = [{"rules": rules, "texts": json.loads(found)} for found, rules in alike.items()]
    for file, content in (("pieces.json", kept), ("ids.json", joined)):
        lines = json.dumps(content, ensure_ascii=False, separators=(",", ":"))
        (DATA / file).write_text(lines + "\n")


if __name__ == "__main__":
    main()
