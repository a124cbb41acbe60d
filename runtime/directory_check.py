"""A model directory, looked through before transformers opens anything in it.

Every file that transformers, tokenizers or safetensors will read is bounded here, and what would make
them run code, or follow a name out of the directory, is refused. Their own parsers still run on what
passed; what they raise goes through `numbers_check.reading`.
"""

from __future__ import annotations

from pathlib import Path

from . import json_check
from .errors import ModelFileError
from .numbers_check import check_family, shown
from .weights_check import Weights, check_safetensors

MAX_SHARDS = 1024
_INDEX = "model.safetensors.index.json"
_SETTINGS = {
    "generation_config.json": json_check.MAX_VALUES,
    "tokenizer_config.json": json_check.MAX_ADDED_VALUES,
    "special_tokens_map.json": json_check.MAX_ADDED_VALUES,
}
"""File -> how many values may be in it."""
_VOCABULARIES = ("tokenizer.json", "vocab.json", "added_tokens.json")
"""Their names are a vocabulary's words, so only the outermost are settings."""
_PLAIN = ("merges.txt", "vocab.txt", "tokenizer.model", "chat_template.jinja")


def check_directory(path: Path) -> None:
    """Raises ModelFileError, naming file and field, unless the directory is a model that can be opened."""
    if not (path / "config.json").is_file():
        raise ModelFileError(f"{path} is a directory but no model: it has no config.json")
    _check_config(path / "config.json")
    if (path / "adapter_config.json").exists():
        raise ModelFileError(f"{path / 'adapter_config.json'}: an adapter names another model to load; merge it first")
    for name, most in _SETTINGS.items():
        if _is_there(path / name):
            json_check.check_settings(path / name, json_check.read(path / name, json_check.MAX_CONFIG_BYTES), most)
    for name in _VOCABULARIES:
        if _is_there(path / name):
            found = json_check.read(path / name, json_check.MAX_TOKENIZER_BYTES)
            if name == "tokenizer.json" and "auto_map" in found:
                raise ModelFileError(f"{path / name}: auto_map: the file asks for code of its own to be run")
    for name in _PLAIN:
        if _is_there(path / name) and (path / name).stat().st_size > json_check.MAX_TOKENIZER_BYTES:
            raise ModelFileError(f"{path / name}: more than {json_check.MAX_TOKENIZER_BYTES} bytes")
    check_weights(path)


def check_weights(path: Path) -> Weights:
    """The directory's weights as transformers will find them: one file, or those an index names."""
    names: set[str] = set()
    elements = 0
    for file in _weight_files(path):
        found = check_safetensors(file)
        if names & found.names:
            raise ModelFileError(f"{file}: tensor {shown(min(names & found.names))} is in another file as well")
        names |= found.names
        elements += found.elements
    return Weights(frozenset(names), elements)


def _check_config(path: Path) -> None:
    settings = json_check.read(path, json_check.MAX_CONFIG_BYTES)
    json_check.check_settings(path, settings, json_check.MAX_VALUES)
    if "model_type" not in settings:
        raise ModelFileError(f"{path}: model_type: the file does not say it")
    check_family(path, settings["model_type"])


def _weight_files(path: Path) -> list[Path]:
    if _is_there(path / "model.safetensors"):
        return [path / "model.safetensors"]
    index = path / _INDEX
    if not _is_there(index):
        raise ModelFileError(f"{path} has no model.safetensors and no {_INDEX} (pickled weights are not loaded)")
    where = json_check.read(index, json_check.MAX_CONFIG_BYTES).get("weight_map")
    if not isinstance(where, dict) or not all(isinstance(name, str) for name in where.values()):
        raise ModelFileError(f"{index}: weight_map: expected the name of a file for each tensor")
    files = sorted(set(where.values()))
    if not 1 <= len(files) <= MAX_SHARDS:
        raise ModelFileError(f"{index}: weight_map: {len(files)} files, expected 1 to {MAX_SHARDS}")
    for name in files:
        if name != Path(name).name or not name.endswith(".safetensors") or not _is_file(path / name):
            raise ModelFileError(f"{index}: weight_map: {shown(name)} is no .safetensors file in this directory")
    return [path / name for name in files]


def _is_there(path: Path) -> bool:
    """Raises ModelFileError for what is there but no file: reading a pipe would wait for ever."""
    if path.exists() and not path.is_file():
        raise ModelFileError(f"{path}: not a file")
    return path.is_file()


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except ValueError:  # a NUL in the name
        return False
