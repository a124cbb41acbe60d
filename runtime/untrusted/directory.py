"""A check of a model directory before transformers opens anything in it.

Every file that transformers, tokenizers or safetensors will read is bounded here, and settings that would
make them run code, or follow a name out of the directory, are refused. Their own parsers still run on the
files that passed; errors that these raise go through `untrusted.numbers.reading`.
"""

from __future__ import annotations

from pathlib import Path

from ..api.errors import ModelFileError
from . import json_files
from .numbers import shown
from .rope import read_rope
from .settings import MAX_ADDED, check_generation, check_tokenizer_settings, read_config
from .tokenizer import check_tokenizer
from .weights import Weights, read_weights

MAX_WEIGHT_FILES = 1024
MAX_TEMPLATE = 1 << 20
MAX_TEMPLATES = 64
_INDEX = "model.safetensors.index.json"
_PLAIN = {
    "merges.txt": json_files.VOCABULARY.size, "vocab.txt": json_files.VOCABULARY.size,
    "tokenizer.model": json_files.VOCABULARY.size, "tekken.json": json_files.VOCABULARY.size,
    "chat_template.jinja": MAX_TEMPLATE,
}  # fmt: skip
"""The largest size in bytes of files whose content is not looked at, by name."""


def check_directory(path: Path) -> None:
    """Raise ModelFileError, which names file and field, unless the directory is a model that can be opened."""
    if not (path / "config.json").is_file():
        raise ModelFileError(f"{path} is a directory but no model: it has no config.json")
    family, settings = read_config(path / "config.json")
    read_rope(path / "config.json", family, settings)
    if (path / "adapter_config.json").exists():
        raise ModelFileError(f"{path / 'adapter_config.json'}: an adapter names another model to load; merge it first")
    if _is_there(path / "generation_config.json"):
        check_generation(path / "generation_config.json")
    _check_tokenizer_files(path)
    check_weights(path)


def check_weights(path: Path) -> Weights:
    """The directory's weights as transformers will find them: those of one file, or of the files that an index
    names."""
    shapes: dict[str, tuple[int, ...]] = {}
    elements = 0
    for file in weight_files(path):
        found = read_weights(file)
        if twice := shapes.keys() & found.shapes.keys():
            raise ModelFileError(f"{file}: tensor {shown(min(twice))} is in another file as well")
        shapes |= found.shapes
        elements += found.elements
    return Weights(shapes, elements)


def _check_tokenizer_files(path: Path) -> None:
    tokenizers = {"tokenizer.json"}
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        if _is_there(path / name):
            tokenizers.update(check_tokenizer_settings(path / name))
    for name in sorted(tokenizers):
        if _is_there(path / name):
            check_tokenizer(path / name)
    if _is_there(path / "added_tokens.json"):
        json_files.read(path / "added_tokens.json", json_files.Limits(json_files.CONFIG.size, MAX_ADDED))
    if _is_there(path / "vocab.json"):
        json_files.read(path / "vocab.json", json_files.VOCABULARY)
    for name, most in _PLAIN.items():
        if _is_there(path / name):
            _check_size(path / name, most)
    templates = sorted((path / "additional_chat_templates").glob("*.jinja"))
    if len(templates) > MAX_TEMPLATES:
        raise ModelFileError(f"{path / 'additional_chat_templates'}: more than {MAX_TEMPLATES} templates")
    for template in templates:
        if _is_there(template):
            _check_size(template, MAX_TEMPLATE)


def _check_size(path: Path, most: int) -> None:
    size = path.stat().st_size
    if size > most:
        raise ModelFileError(f"{path}: {size} bytes, at most {most} are allowed")


def weight_files(path: Path) -> list[Path]:
    if _is_there(path / "model.safetensors"):
        return [path / "model.safetensors"]
    index = path / _INDEX
    if not _is_there(index):
        raise ModelFileError(f"{path} has no model.safetensors and no {_INDEX} (pickled weights are not loaded)")
    where = json_files.read(index, json_files.INDEX).get("weight_map")
    if not isinstance(where, dict) or not all(isinstance(name, str) for name in where.values()):
        raise ModelFileError(f"{index}: weight_map: expected the name of a file for each tensor")
    files = sorted(set(where.values()))
    if not 1 <= len(files) <= MAX_WEIGHT_FILES:
        raise ModelFileError(f"{index}: weight_map: {len(files)} files, expected 1 to {MAX_WEIGHT_FILES}")
    for name in files:
        if name != Path(name).name or not name.endswith(".safetensors") or not _is_file(path / name):
            raise ModelFileError(f"{index}: weight_map: {shown(name)} is no .safetensors file in this directory")
    return [path / name for name in files]


def _is_there(path: Path) -> bool:
    """True if the file is there. Raises ModelFileError for something else of that name: reading a pipe would wait for
    ever."""
    if path.exists() and not path.is_file():
        raise ModelFileError(f"{path}: not a file")
    return path.is_file()


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except ValueError:  # a NUL in the name
        return False
