"""Vocabularies as GGUF files state them, and texts that are hard to split: what our tokenizers are compared with
llama.cpp's by (`llama_tokens`)."""

from __future__ import annotations

import zlib
from typing import Any

TEXTS = [
    "Hello world", "12345 6789", "x1234567", "1a2b", "v1.2.3", "1,234.5", "\n1\n", "a\nb\r\nc",
    "a\n\n\nb\n \n c", "  \n\n  x", "x.\n\n", "?\n\n!", "\t\tif (x):", "end   ", "   lead", "a  b   c", "½",
    "x ½ ²³", "Ⅷ ١ ४५", "don't DON'T", "We'Ll I'VE 'S", "'s's", "日本語テキスト12", "中文，标点。",
    "한국어 ㄱ", "々〇日", "ｶﾀｶﾅ １２", "👍🏽 ok", "🇩🇪🏳️‍🌈", "x\u00a0y\u00a0 z", " \u00a0 a",
    "a\x0bb\x0cc\x85", "\u200d\u200b\ufeff", "a\u3000b\u2003", "HelloWorld fooBar", "École ß ﬁ",
    "ñandú ÑANDÚ", "Привет МИР", "𝐀𝐛 𝟏", "ʼn İı ǅ", "e\u0301te\u0301", "Üb\u0308 a\u0308A", "क्षि",
    "ÉCOLE éÉa", "ٱلسَّلَام ١٢٣", "a_b-c/d//e", "http://a.b/c?d", "...!!! ?", "$5 + 3 <= 9^2`|~",
    "«quote» “x”", "=====", "####\n#", "/ /\n/", "a (b)\n", "<|im_end|>",
]  # fmt: skip
"""Short, so that every piece of each can be a token."""


def byte_letters() -> list[str]:
    """The letter that stands for each byte in a byte-level vocabulary."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = (chr(256 + number) for number in range(256))
    return [chr(byte) if byte in plain else next(others) for byte in range(256)]


def spelled(text: str) -> str:
    letters = byte_letters()
    return "".join(letters[byte] for byte in text.encode())


def pieces_keys(pre: str) -> dict[str, Any]:
    """A vocabulary in which every piece of `TEXTS` is one token: tokens are then the pieces that a rule makes."""
    words: dict[str, None] = dict.fromkeys(byte_letters())
    merges: dict[tuple[str, str], None] = {}
    for text in map(spelled, TEXTS):
        for begin in range(len(text)):
            for end in range(begin + 2, len(text) + 1):
                words[text[begin:end]] = None
                for cut in range(begin + 1, end):
                    merges[text[begin:cut], text[cut:end]] = None
    tokens = sorted(words, key=len)
    stated = [f"{left} {right}" for left, right in sorted(merges, key=lambda pair: len(pair[0] + pair[1]))]
    said = {"pre": pre, "merges": stated, "bos_token_id": 0, "eos_token_id": 0}
    return _keys("gpt2", tokens, [1] * len(tokens), said)


MIXED = [
    *TEXTS, "", " ", "  ", "▁", " ▁ ", "hello", " hello", "hellohello", "aaaaaaaa", " aaa  aaaa   a",
    "tttttthhhh", "\n\n\n", "<s>", "<s>hello", "<s> hello", "hello</s>", "</s> </s>",
    "<|user|>\nhello<|end|>\n", "<|user|>  hello<|end|>", "<tool>hello</tool>", "<tool> hello",
    "x<|im_start|>user\nhello<|im_end|>\n", "<｜end▁of▁sentence｜>hello", "<0x0A>",
    "<|fim_prefix|>hello<|fim_middle|>", "<|channel|>hello<|return|>", "<unk>hello", "日本", "日本語日本",
    "e\u0301日",
]  # fmt: skip
"""Also what is written with added tokens."""
_ADDED = {
    "<|user|>": 3, "<|end|>": 3, "<|im_start|>": 3, "<|im_end|>": 1, "<｜end▁of▁sentence｜>": 3,
    "<|eot_id|>": 4, "<tool>": 4, "</tool>": 4, "\n\n": 4, "  ": 4, "日本": 4, "<|fim_prefix|>": 4,
    "<|fim_pad|>": 3, "<|file_sep|>": 4, "<|channel|>": 3, "</s>": 3,
}  # fmt: skip
"""Token -> its kind: 1 a word, 3 a control token, 4 an added one. Some are called what they are not, as happens."""
_HARMONY = {"<|return|>": 3, "<|call|>": 3}
_ENDS = [
    "<|eot_id|>",
    "<|im_end|>",
    "<|end|>",
    "<|return|>",
    "<|call|>",
    "<|flush|>",
    "<|calls|>",
    "<end_of_turn>",
    "<|endoftext|>",
    "</s>",
    "<|eom_id|>",
    "<EOT>",
    "_<EOT>",
    "[EOT]",
    "[EOS]",
    "<|end_of_text|>",
    "<end_of_utterance>",
    "<eos>",
    "<turn|>",
    "<|tool_response>",
    "<｜end▁of▁sentence｜>",
    "[e~[",
    "<|fim_repo|>",
    "<|fim_suffix|>",
    "<th>",
]
"""Tokens that end a reply, or only some of them, or none, by their text."""
_WORDS = "hello the aaaa tth lo wor don't DON'T user 日本語 é 12 == \n\n"


def _parts(text: str) -> list[str]:
    """What can be joined in it, in an order that mixes long and short."""
    found = {text[begin:end] for begin in range(len(text)) for end in range(begin + 2, min(len(text), begin + 5) + 1)}
    return sorted(found, key=lambda part: zlib.crc32(part.encode()))


def _sentencepiece(added: dict[str, int], **said: Any) -> dict[str, Any]:
    text = "▁" + _WORDS.replace(" ", "▁")
    pieces = [part for part in _parts(text) if part not in added]
    letters = sorted(set(text))
    tokens = ["<unk>", "<s>", *added, *(f"<0x{byte:02X}>" for byte in range(256)), *pieces, *letters]
    kinds = [2, 3, *added.values(), *[6] * 256, *[1] * (len(pieces) + len(letters))]
    scores = [0.0, 0.0, *[-1000.0] * len(added), *[0.0] * 256, *(-1.0 - n for n in range(len(pieces) + len(letters)))]
    return _keys("llama", tokens, kinds, {"scores": scores, "pre": "default", "eos_token_id": 3, **said})


def _bytes(added: dict[str, int], pre: str, **said: Any) -> dict[str, Any]:
    text = spelled(" " + _WORDS)
    merges = [(part[:cut], part[cut:]) for part in _parts(text) for cut in range(1, len(part))]
    parts = [*sorted({left + right for left, right in merges}), spelled(" hello")]  # the last no merge makes
    tokens = [*added, *byte_letters(), *parts]
    kinds = [*added.values(), *[1] * (256 + len(parts))]
    stated = [f"{left} {right}" for left, right in merges]
    return _keys("gpt2", tokens, kinds, {"merges": stated, "pre": pre, "bos_token_id": 0, "eos_token_id": 1, **said})


def _letters(added: dict[str, int], **said: Any) -> dict[str, Any]:
    """As Gemma 4's: joined by merges, but spelled in letters."""
    text = "▁" + _WORDS.replace(" ", "▁")
    merges = [(part[:cut], part[cut:]) for part in _parts(text) for cut in range(1, len(part)) if "\n" not in part]
    parts = sorted({left + right for left, right in merges} - added.keys())
    tokens = ["<bos>", "<unk>", *added, *(f"<0x{byte:02X}>" for byte in range(256)), *sorted(set(text)), *parts]
    kinds = [3, 2, *added.values(), *[6] * 256, *[1] * (len(tokens) - 258 - len(added))]
    stated = [f"{left} {right}" for left, right in merges if left + right in parts]
    return _keys("gemma4", tokens, kinds, {"merges": stated, "bos_token_id": 0, "eos_token_id": 2, **said})


def _keys(model: str, tokens: list[str], kinds: list[int], said: dict[str, Any]) -> dict[str, Any]:
    name = said.pop("name", "tiny")
    found = {"model": model, "tokens": tokens, "token_type": kinds, **said}
    return {"general.name": name, **{f"tokenizer.ggml.{key}": value for key, value in found.items()}}


VOCABULARIES = {
    "sentencepiece": _sentencepiece(_ADDED),
    "sentencepiece without a blank before": _sentencepiece(_ADDED, add_space_prefix=False, add_eos_token=True),
    "sentencepiece without BOS": _sentencepiece(_ADDED, add_bos_token=False, eot_token_id=2),
    "phi-3": _sentencepiece(
        {token: kind for token, kind in _ADDED.items() if token.strip()} | {"<|endoftext|>": 3}, name="Tiny Phi-3"
    ),
    "bytes": _bytes(_ADDED, "gpt-2"),
    "bytes, begun by the rule": _bytes(_ADDED | _HARMONY, "llama-bpe"),
    "bytes, begun and ended": _bytes(_ADDED, "smollm", add_bos_token=True, add_eos_token=True, eom_token_id=300),
    "bytes, not begun": _bytes(_ADDED, "llama-bpe", add_bos_token=False),
    "letters": _letters(_ADDED),
    "ends by name": _bytes({end: 1 + 2 * (number % 2) for number, end in enumerate(_ENDS)}, "gpt-2"),
}
"""Keys of a file by what is particular about it."""
