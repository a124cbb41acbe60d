"""The settings that a model's files may have: `config.json` by a list of allowed names, the others by forbidden ones.

`config.json` never reaches transformers: `read_config` hands on the names that our families' forward pass
depends on, and nothing else. So `auto_map`, which Microsoft's Phi-3 files have, is dropped like any other
name that is not listed; what would choose other code, other files or another kind of weights than those we
checked is refused, since a model without it is not the one that was meant.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from ..api.errors import ModelFileError
from . import json_files
from .families import FAMILIES, WRAPPERS
from .numbers import check_family, check_number, shown

logger = logging.getLogger(__name__)

_ENDS = frozenset({"bos_token_id", "pad_token_id"})
"""Names that a wrapper may state for its text part, if that does not."""
_EOS = "eos_token_id"
"""What a wrapper and its text part state of it both ends a reply: one may be the end of a text, one that of a turn."""
_OTHER_WEIGHTS = frozenset({"quantization_config", "compression_config", "transformers_weights"})
_PACKED = "quantization_config"
"""Says how weights are packed, which some families' tensors show."""
_BY_LAYER = "per_layer_config"
"""Number of a layer -> the settings in which it differs, as transformers 5.17 and later write them."""
_MAY_DIFFER = frozenset({"head_dim", "num_key_value_heads"})
_OTHER_CODE = frozenset({"auto_map", "custom_pipelines", "trust_remote_code", "kernel_config", "fusion_config"})
_IMPLEMENTATION = "_implementation"
_NEVER_OPENED = frozenset({"special_tokens_map_file"})
"""Names whose files transformers never opens. Older files have their author's own path there, which it keeps as a
text."""
MAX_NAMES = 256
"""The most names in a tokenizer's settings, at the outermost level: transformers copies them many times. Known files
have 40."""
MAX_ADDED = 1 << 14
"""The most tokens added to the vocabulary: transformers takes 2.5 KB for each. Gemma 3 has 6,414."""
MAX_LIST = 1 << 12
"""The most items of a list: transformers' time for a list of special tokens grows with the square, 3 s for 30,000."""
_TOKEN_IDS = frozenset({"bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id"})
_MAX_TOKEN_IDS = 256


def read_config(path: Path) -> tuple[str, dict[str, Any]]:
    """Read the family, and the settings that may be handed to its configuration class; of a wrapper, those of its text
    part. Raises ModelFileError."""
    settings = json_files.read(path, json_files.CONFIG)
    family = settings.pop("model_type", None)
    if family is None:
        raise ModelFileError(f"{path}: model_type: the file does not say it")
    if isinstance(settings.get("text_config"), dict):
        family, settings = _text_part(path, family, settings)
    check_family(path, family)
    known = FAMILIES[family]
    for name, why in known.refused.items():
        if settings.get(name) is not None:
            raise ModelFileError(f"{path}: {name}: {why}")
    may_slide = "use_sliding_window" not in known.names or settings.get("use_sliding_window")
    if settings.get("sliding_window") == 0 and not may_slide:
        settings["sliding_window"] = None  # which transformers writes so for Qwen's mixtures of experts
    if known.packed is not None and _method(settings.get(_PACKED)) == known.packed:
        del settings[_PACKED]
    _refuse(path, {name: value for name, value in settings.items() if name != "auto_map"})
    if settings.get(_BY_LAYER) is None:
        settings.pop(_BY_LAYER, None)  # transformers would take it for a statement that layers are alike
    else:
        _check_by_layer(path, family, settings[_BY_LAYER])
    dropped = sorted(settings.keys() - known.names)
    logger.debug("%s: not used: %s", path, ", ".join(dropped))
    return family, {name: value for name, value in settings.items() if name in known.names}


def _method(packing: object) -> object:
    return packing.get("quant_method") if isinstance(packing, dict) else None


def _check_by_layer(path: Path, family: str, settings: object) -> None:
    """Raise ModelFileError unless layers differ in what the family's may differ in; the numbers are checked."""
    if _BY_LAYER not in FAMILIES[family].names:
        raise ModelFileError(f"{path}: {_BY_LAYER}: {family} has layers of one size")
    if not isinstance(settings, dict) or not all(isinstance(one, dict) for one in settings.values()):
        raise ModelFileError(f"{path}: {_BY_LAYER}: {shown(settings)}, expected settings by layer")
    for number, one in settings.items():
        if not number.isdecimal() or not number.isascii() or (others := sorted(one.keys() - _MAY_DIFFER)):
            what = shown(number) if not number.isdecimal() or not number.isascii() else shown(others[0])
            raise ModelFileError(f"{path}: {_BY_LAYER}: {what}, expected {' and '.join(sorted(_MAY_DIFFER))} by layer")


def _text_part(path: Path, wrapper: object, settings: dict[str, Any]) -> tuple[object, dict[str, Any]]:
    """Family and settings of the text in a model of pictures and text. Raises ModelFileError if it does not run through
    its family as it would alone."""
    if not isinstance(wrapper, str) or wrapper not in WRAPPERS:
        raise ModelFileError(
            f"{path}: model family {shown(wrapper)} is one of several parts, and its text part cannot be taken alone; "
            f"of such families these are supported, for text: {', '.join(sorted(WRAPPERS))}"
        )
    _refuse(path, {name: value for name, value in settings.items() if name not in ("auto_map", "text_config")})
    text = dict(settings["text_config"])
    family = text.pop("model_type", WRAPPERS[wrapper])
    if family is None:
        raise ModelFileError(f"{path}: text_config: model_type: the file does not say it")
    ends = {name: settings[name] for name in _ENDS & settings.keys()}
    stated = [number for part in (settings, text) for number in _listed(part.get(_EOS))]
    if stated:
        text[_EOS] = list(dict.fromkeys(stated))
    head = {name: settings[name] for name in {"tie_word_embeddings"} & settings.keys()}  # the head is the wrapper's
    return family, {**ends, **text, **head}


def _listed(value: object) -> list[object]:
    if value is None:
        return []
    return value if isinstance(value, list) else [value]


def check_generation(path: Path) -> None:
    """Raise ModelFileError if `generation_config.json` asks for more than numbers and token ids."""
    _refuse(path, json_files.read(path, json_files.CONFIG))


def check_tokenizer_settings(path: Path) -> list[str]:
    """Raise ModelFileError if the file has code run, or a file opened that is not in its directory.

    Returns:
        The names in `fast_tokenizer_files`: one of them may be read in place of tokenizer.json.
    """
    settings = json_files.read(path, json_files.TOKENIZER_SETTINGS)
    if len(settings) > MAX_NAMES:
        raise ModelFileError(f"{path}: content: {len(settings)} names, at most {MAX_NAMES} are allowed")
    for name, value in settings.items():
        most = MAX_ADDED if isinstance(value, dict) else MAX_LIST
        if isinstance(value, dict | list) and len(value) > most:
            raise ModelFileError(f"{path}: {name}: {len(value)} items, at most {most} are allowed")
    files = settings.pop("fast_tokenizer_files", None) or []
    if not isinstance(files, list) or not all(_is_plain(name) for name in files):
        raise ModelFileError(f"{path}: fast_tokenizer_files: {shown(files)}, expected names of files in this directory")
    if settings.get("init_inputs"):
        raise ModelFileError(f"{path}: init_inputs: {shown(settings['init_inputs'])}, expected none")
    length = settings.get("model_max_length")
    if length is not None and (isinstance(length, bool) or not isinstance(length, int | float) or not length >= 1):
        raise ModelFileError(f"{path}: model_max_length: {shown(length)}, expected a number from 1")
    for name, value in settings.items():
        if name.endswith(("_file", "_files")) and value is not None and name not in _NEVER_OPENED:
            raise ModelFileError(f"{path}: {name}: {shown(value)}, a tokenizer's files have their usual names")
    _refuse(path, settings)
    return files


def _is_plain(name: object) -> bool:
    return isinstance(name, str) and name == Path(name).name != ".." and name.isprintable()


def _refuse(path: Path, settings: dict[str, Any]) -> None:
    """Raise ModelFileError for a setting that must not be followed, or an impossible number, at any depth."""
    pending: list[tuple[str, str, Any]] = [(name[:60], name, value) for name, value in settings.items()]
    while pending:
        outermost, name, value = pending.pop()
        where = (
            name[:60] if name[:60] == outermost else f"{outermost}: {name[:60]}"
        )  # a name may be as long as the file
        _check_setting(path, where, name, value)
        if isinstance(value, list):
            pending += [(outermost, "", item) for item in value]
        elif isinstance(value, dict):
            pending += [(outermost, inner, item) for inner, item in value.items()]


def _check_setting(path: Path, where: str, name: str, value: Any) -> None:
    if name in _OTHER_CODE and value is not None:
        raise ModelFileError(f"{path}: {where}: the file asks for code of its own to be run, which is never done")
    if name in _OTHER_WEIGHTS and value is not None:
        raise ModelFileError(f"{path}: {where}: its weights are not plain ones; take the model's plain files or a GGUF")
    if _IMPLEMENTATION in name and not _is_built_in(name, value):
        raise ModelFileError(f"{path}: {where}: {shown(value)} would be fetched and run, which is never done")
    if name in _TOKEN_IDS and not _are_token_ids(value):
        raise ModelFileError(f"{path}: {where}: {shown(value)}, expected a token id or a few of them")
    check_number(path, where, name, value)


def _is_built_in(name: str, value: Any) -> bool:
    """True if `value` names an attention or cache that needs no other code; such a name is dropped."""
    if name.endswith("_internal"):
        return value is None
    return value is None or isinstance(value, bool) or (isinstance(value, str) and value.replace("_", "").isalnum())


def _are_token_ids(value: Any) -> bool:
    if isinstance(value, list):
        return len(value) <= _MAX_TOKEN_IDS and all(type(item) is int and abs(item) < 1 << 31 for item in value)
    return value is None or (type(value) is int and abs(value) < 1 << 31)
