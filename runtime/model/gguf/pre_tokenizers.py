r"""The rules by which a text is split into words before its bytes are joined, by their names in `tokenizer.ggml.pre`.

A rule is a list of regular expressions. The text is cut at the borders of the first one's matches, each piece at those
of the next one's, and so on. llama.cpp knows the same names; it says a few of the rules with less than the models were
trained with (its expressions know letters, but neither upper case nor combining marks), and there the model's own is
here: docs/decisions/0032 lists them.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Rule:
    """The splitting rule that a name in `tokenizer.ggml.pre` stands for."""

    splits: tuple[str, ...]
    """Regular expressions in Oniguruma's dialect, which `tokenizers` uses."""
    whole_words: bool = False
    """True if a word that is a token is taken as it is, without looking at the merges."""
    begins: bool = False
    """True if a text begins with BOS where the file does not say."""
    byte_level: bool = True
    """True if tokens are spelled in the alphabet that stands for bytes; otherwise they are spelled in characters,
    blanks as U+2581."""


def _any(*parts: str) -> str:
    return "|".join(parts)


_SHORT = "'s|'t|'re|'ve|'m|'ll|'d"
_SHORT_ANY_CASE = "'(?:[sS]|[tT]|[rR][eE]|[vV][eE]|[mM]|[lL][lL]|[dD])"
_WORD = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_SIGNS = r" ?[^\s\p{L}\p{N}]+[\r\n]*"
_SIGNS_AND_SLASHES = r" ?[^\s\p{L}\p{N}]+[\r\n/]*"
_LINES = r"\s*[\r\n]+"
_BLANKS = r"\s+(?!\S)|\s+"
_DIGIT = r"\p{N}"
_THREE_DIGITS = r"\p{N}{1,3}"
_CJK = "[一-龥぀-ゟ゠-ヿ]+"
_OF_LINES = r"[^\n]+|[\n]+"

_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_CASED = rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+", rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*"
_CASED_AND_SHORT = tuple(rf"{word}(?:{_SHORT_ANY_CASE})?" for word in _CASED)

_GPT2 = _any(_SHORT, r" ?\p{L}+", r" ?\p{N}+", r" ?[^\s\p{L}\p{N}]+", _BLANKS)
_LLAMA3 = _any(_SHORT_ANY_CASE, _WORD, _THREE_DIGITS, _SIGNS, _LINES, _BLANKS)
_QWEN2 = _any(_SHORT_ANY_CASE, _WORD, _DIGIT, _SIGNS, _LINES, _BLANKS)
_GPT4O = _any(*_CASED_AND_SHORT, _THREE_DIGITS, _SIGNS_AND_SLASHES, _LINES, _BLANKS)
_ASCII_SIGN = r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~]"
_DEEPSEEK3_WORDS = rf"{_ASCII_SIGN}[A-Za-z]+", r"[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"
_DEEPSEEK3 = _any(*_DEEPSEEK3_WORDS, r" ?[\p{P}\p{S}]+[\r\n]*", _LINES, _BLANKS)
_BLOOM = " ?[^(\\s|.,!?…。，、।۔،)]+"
_CASED_LETTERS = (
    "A-Za-zµÀ-ÖØ-öø-ƺƼ-ƿǄ-ʓʕ-ʯͰ-ͳͶͷͻ-ͽͿΆΈ-ΊΌΎ-ΡΣ-ϵϷ-ҁҊ-ԯԱ-ՖႠ-ჅᎠ-Ᏽᏸ-ᏽᲐ-ᲺᲽ-Ჿᴀ-ᴫᵫ-ᵷᵹ-ᶚḀ-\u1f15\u1f18-\u1f1d"
    "\u1f20-\u1f45\u1f48-\u1f4d\u1f50-\u1f57\u1f59\u1f5b\u1f5d\u1f5f-\u1f7d\u1f80-\u1fb4\u1fb6-\u1fbc\u1fbe"
    "\u1fc2-\u1fc4\u1fc6-\u1fcc\u1fd0-\u1fd3\u1fd6-\u1fdb\u1fe0-\u1fec\u1ff2-\u1ff4\u1ff6-\u1ffc\u2102\u2107"
    "\u210a-\u2113\u2115\u2119-\u211d\u2124\u2126\u2128\u212a-\u212d\u212f-\u2134\u2139\u213c-\u213f\u2145-\u2149"
    "\u214e\u2183\u2184Ⰰ-ⱻⱾ-ⳤⳫ-ⳮⳲⳳꙀ-ꙭꚀ-ꚛꜢ-ꝯꝱ-ꞇꞋ-ꞎꭰ-ꮿﬀ-ﬆﬓ-ﬗＡ-Ｚａ-ｚ𐐀-𐑏𐒰-𐓓𐓘-𐓻𐲀-𐲲𐳀-𐳲𑢠-𑣟𞤀-𞥃"
)
"""Cased letters of Unicode 11. Some Greek ones, Kelvin and Ohm are written by number: editors take look-alikes for
them."""

_RULES: dict[str, Rule] = {
    "default": Rule((r"[\p{P}$+<=>^~|]+", _GPT2, r"\p{N}+", "[0-9]{3}")),
    "gpt-2 phi-2 jina-es jina-de jina-v2-es jina-v2-de jina-v1-en jina-v2-code roberta-bpe gigachat a.x-4.0 mellum "
    "modern-bert exaone4 mpt olmo jais trillion granite-docling": Rule((_GPT2,)),
    "starcoder refact command-r smollm codeshell exaone minerva-7b mellum2": Rule((_DIGIT, _GPT2)),
    "falcon": Rule((r"[\p{P}$+<=>^~|`]+", _GPT2, "[0-9]{3}")),
    "llama3 llama-v3 llama-bpe falcon3 falcon-h1 pixtral midm-2.0 lfm2 jina-v5-nano": Rule(
        (_LLAMA3,), whole_words=True, begins=True
    ),
    "dbrx smaug-bpe glm4 chatglm-bpe": Rule((_LLAMA3,)),
    "minicpm5": Rule(
        (_THREE_DIGITS, _any(_SHORT_ANY_CASE, _WORD, r"\p{N}+", _SIGNS, _LINES, _BLANKS)), whole_words=True
    ),
    "qwen2 deepseek-r1-qwen kormo f2llmv2 megrez stablelm2 hunyuan solar-open grok-2": Rule((_QWEN2,)),
    "qwen35": Rule((
        _any(
            _SHORT_ANY_CASE, r"[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+", _DIGIT, r" ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*", _LINES,
            _BLANKS,
        ),
    )),
    "ufakzeka": Rule((_any(_WORD, _DIGIT, _SIGNS, _LINES, _BLANKS),)),
    "laguna": Rule((_OF_LINES, _QWEN2)),
    "bailingmoe bailingmoe2 llada-moe": Rule((
        _any(_SHORT_ANY_CASE, _WORD, _DIGIT, _SIGNS, r"\s*[\r\n]", _BLANKS),
    )),
    "seed-coder": Rule((_any(_SHORT_ANY_CASE, _WORD, _DIGIT, r" ?[^\s\p{L}\p{N}\r\n]+", _LINES, _BLANKS),)),
    "exaone-moe": Rule((
        _any(
            _SHORT_ANY_CASE, r"[^\r\n\p{L}\p{N}]?(?:\p{L}\p{M}*(?: \p{L}\p{M}*)*)+", _DIGIT,
            r" ?[^\s\p{L}\p{N}]+[\r\n/]?", r"\s*[\r\n]", _BLANKS,
        ),
    )),
    "jais-2": Rule((
        _any(
            _SHORT_ANY_CASE, _WORD, _THREE_DIGITS, _SIGNS, _LINES,
            *(rf"\s{{{count}}}(?!\S)" for count in ("512", "256", "128", "64", "32", "16", "8", "4", "1,2")), r"\s",
        ),
    )),
    "gpt-4o llama4 kanana2 talkie minimax-m2": Rule((_GPT4O,)),
    "granite-embed-multi-97m": Rule((_GPT4O,), whole_words=True),
    "tekken": Rule(
        (_any(*_CASED, _DIGIT, _SIGNS_AND_SLASHES, _LINES, _BLANKS),), whole_words=True, begins=True
    ),
    "tiny_aya cohere2moe": Rule(("[0-9]{1,3}(?=(?:[0-9]{3})*(?![0-9A-Za-z_]))", _GPT4O)),
    "youtu": Rule(
        (
            "[가-힣ㄱ-ㆎ]+|[！…“”‘’—：；，、-〿︰-﹏]+|[ㄅ-ㄯ]+|" + _CJK,
            _any(*_CASED_AND_SHORT, _DIGIT, _SIGNS_AND_SLASHES, _LINES, _BLANKS),
        ),
        whole_words=True,
    ),
    "deepseek-llm": Rule((
        r"[\r\n]", rf"\s?[{_CASED_LETTERS}]+", r"\s?[!-/:-~！-／：-～‘-‟　-。]+", r"\s+$", "[一-龥ࠀ-一가-퟿]+",
        r"\p{N}+",
    )),
    "deepseek-coder": Rule((r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", "[一-龥ࠀ-一가-퟿]+", _DIGIT)),
    "deepseek-v3 hunyuan-dense joyai-llm hy_v4": Rule((_THREE_DIGITS, _CJK, _DEEPSEEK3)),
    "spark2_5": Rule((
        _THREE_DIGITS, _CJK, _any(*_DEEPSEEK3_WORDS, r" ?[\p{P}\p{S}]+", r"[\r\n]", _BLANKS), _DIGIT,
    )),
    "afmoe": Rule((
        r"\p{N}{1,3}(?=(?:\p{N}{3})*(?!\p{N}))",
        "[一-鿿㐀-䶿豈-﫿぀-ゟ゠-ヿ･-ﾟ⼀-⿟เ-๿຀-໿ក-៿က-႟ꩠ-ꩿꧠ-꧿가-힯ᄀ-ᇿ]+",
        _DEEPSEEK3,
    )),
    "kimi-k2": Rule((
        _any(
            r"\p{Han}+",
            *(
                rf"[^\r\n\p{{L}}\p{{N}}]?{word}(?:{_SHORT_ANY_CASE})?"
                for word in (
                    r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]*[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]+",
                    r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]+[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]*",
                )
            ),
            _THREE_DIGITS, _SIGNS, _LINES, _BLANKS,
        ),
    )),
    "superbpe": Rule((r"\p{N}+", "(?=(?:[0-9]{3})+(?![0-9]))")),
    "poro-chat bloom gpt3-finnish": Rule((_BLOOM,)),
    "viking": Rule((_BLOOM, _DIGIT)),
    "chameleon": Rule(
        (
            "<sentinel:[0-9]+>", "IMGIMG[A-I]{1,4}Z", r"[\t\n]|    |  ", _DIGIT, r"[\p{P}!-/:-@\[-`{-~]", _GPT2,
        ),
        begins=True,
    ),
    "gemma4 granite-embed-multi-311m": Rule((_OF_LINES,), begins=True, byte_level=False),
    "sarvam-moe": Rule((_OF_LINES,), byte_level=False),
}  # fmt: skip
RULES: dict[str, Rule] = {name: rule for names, rule in _RULES.items() for name in names.split()}
"""The rule of each name. `whitespace` is left out: only models that write nothing have it."""
