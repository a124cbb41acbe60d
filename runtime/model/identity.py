"""The identity of a model, whatever it is called: the digest by which a store knows it (docs/decisions/0020).

Two directories are one model if their tensors are the same and their `config.json` says the same about the forward
pass. Settings that only say who wrote a file, in which order, or when a reply ends, are left out: they change no
number. So is the tokenizer: it decides which token ids a text becomes, and pages are named by token ids.
"""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import xxhash

from ..api.errors import ModelFileError
from ..untrusted.directory import weight_files
from ..untrusted.families import FAMILIES
from ..untrusted.json_files import of_file
from ..untrusted.rope import NAMES, read_rope, was_misread
from ..untrusted.safetensors_header import TensorEntry, read_header
from ..untrusted.settings import read_config
from .conversion import made_of, tensors_in
from .digests import Stamp, stamp
from .locate import cache_dir, file_digest, remembered

_FORMAT = 2
_FORMER_FORMAT = 1
_CHANGES_NO_NUMBER = frozenset({
    "bos_token_id", "eos_token_id", "pad_token_id",  # tokens that the tokenizer adds, and those that end a reply
    "attention_dropout", "embd_pdrop", "resid_pdrop",  # settings of training
    "pretraining_tp",  # how a matrix was once split
})  # fmt: skip
"""Names that change no number, of those that reach a family's configuration (`untrusted.families`); no other name
reaches anything."""
_ROPE = ("rope_parameters", "rope_scaling", "rope_theta", "partial_rotary_factor")
_LENGTH_BLIND = frozenset({"default", "linear"})
"""Kinds of RoPE that do not compute with `max_position_embeddings`, which then only says how long a context may be."""
_POSITIONS = 2
"""Marks models whose positions versions before 0034 computed otherwise than their files say: KV of those versions is
not found."""
_USUAL: dict[str, Any] = {
    "attention_bias": False, "mlp_bias": False, "use_bidirectional_attention": False,
    "attn_logit_softcapping": None, "final_logit_softcapping": None, "layer_types": None,
}  # fmt: skip
"""Values that every family takes for a missing name: to state one or not is the same."""
TENSORS = "tensors"
"""The kind under which the result of `file_tensors` is remembered."""
_BLOCK = 1 << 18
"""Bytes read at a time: larger blocks leave the processor's cache before they are digested."""


def fingerprint(identity: dict[str, Any]) -> bytes:
    """The 16 bytes that name a store: equal for equal identities."""
    return hashlib.blake2b(json.dumps(identity, sort_keys=True, default=str).encode(), digest_size=16).digest()


def identity_of(directory: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """The identity that a store's fingerprint is made from; `settings` are dtype, layout and a lossy codec."""
    return {"format": _FORMAT, "weights": model_key(directory), **settings}


def is_later(number: object) -> bool:
    """True if a later version made an identity of this format."""
    return isinstance(number, int) and number > _FORMAT


def former_identity(directory: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """The identity that versions before 0020 made, by which their folders are found. For models whose positions they
    misread, it is one that they never made."""
    from transformers import AutoConfig

    family, said = read_config(directory / "config.json")
    rope = None if was_misread(family, said) else AutoConfig.for_model(family, **copy.deepcopy(said)).rope_parameters
    return {"format": _FORMER_FORMAT, "weights": weights_digest(directory), "rope": rope, **settings}


def model_key(directory: Path) -> str:
    """The digest of the model in a directory, from its tensors and from what in `config.json` can change a number."""
    said = {"config": _what_matters(directory / "config.json"), "tensors": tensors_digest(directory)}
    return hashlib.blake2b(json.dumps(said, sort_keys=True).encode(), digest_size=16).hexdigest()


def model_digests(directory: Path) -> list[str]:
    """The digests of the model under which files beside it are kept, the best first: that of the GGUF file it was
    converted from, which is one for all dtypes; its key; the digest of earlier versions."""
    gguf = gguf_digest(directory)
    return [*([gguf] if gguf is not None else []), model_key(directory), weights_digest(directory)]


def gguf_digest(directory: Path) -> str | None:
    """The digest of the GGUF file that `locate` converted to this directory; None if it was not made so."""
    if directory.resolve().parent != (cache_dir() / "models").resolve():
        return None
    made = made_of(directory.resolve().name)
    return made.digest if made is not None else None


def stamps(directory: Path, files: Sequence[Path] = ()) -> dict[Path, Stamp]:
    """Stamps of the files that `model_key` is made from, of which `files` are the weights, or those in the directory:
    equal as long as it is. Raises OSError, ModelFileError."""
    return {path: stamp(path) for path in (*(files or weight_files(directory)), directory / "config.json")}


def weights_digest(directory: Path) -> str:
    """One digest over the bytes of weights, configuration and tokenizer, by which versions before 0020 named a
    model."""
    digest = xxhash.xxh3_128()
    names = [*sorted(directory.glob("*.safetensors")), directory / "config.json", directory / "tokenizer.json"]
    for path in names:
        if path.is_file():
            digest.update(f"{path.name}:{file_digest(path)};".encode())
    return digest.hexdigest()


# Weights


def tensors_digest(directory: Path) -> str:
    """The digest over names, types, shapes and bytes of all tensors, in whichever order and files they are stored."""
    in_file = tensors_in(directory)
    if in_file is not None:
        return f"gguf {in_file}"
    try:
        files = weight_files(directory)
    except ModelFileError:
        files = []  # `stratakv bench` makes such a model up in memory
    return f"{_sum(map(file_tensors, files)):032x}"


def file_tensors(path: Path) -> str:
    """The part of `tensors_digest` that one file contributes."""
    return remembered(path, TENSORS, _tensors_in)


def _tensors_in(path: Path) -> str:
    """The sum of the tensors' digests, modulo 2^128: sums over a model's files add up to that of one file."""
    with path.open("rb") as file:
        tensors = read_header(file, path.stat().st_size, of_file(path)).tensors()
        in_order = sorted(tensors.items(), key=lambda item: (item[1].begin, item[1].end, item[0]))
        return f"{_sum(_tensor(file, name, entry) for name, entry in in_order):032x}"


def _tensor(file: BinaryIO, name: str, entry: TensorEntry) -> str:
    digest, left = xxhash.xxh3_128(), entry.end - entry.begin
    while left > 0:
        block = file.read(min(_BLOCK, left))
        if not block:
            raise ModelFileError(f"{file.name}: {name}: the file ends inside it; is it complete?")
        digest.update(block)
        left -= len(block)
    said = json.dumps([name, entry.dtype, entry.shape, digest.hexdigest()])
    return hashlib.blake2b(said.encode(), digest_size=16).hexdigest()


def _sum(digests: Any) -> int:
    return sum(int(digest, 16) for digest in digests) % (1 << 128)


# Configuration


def _what_matters(path: Path) -> dict[str, Any]:
    family, settings = read_config(path)
    kept = {name: _plain(value) for name, value in settings.items() if name not in _CHANGES_NO_NUMBER}
    kept = {name: value for name, value in kept.items() if name not in _USUAL or value not in (None, _USUAL[name])}
    if was_misread(family, settings):
        kept = {name: value for name, value in kept.items() if name not in NAMES}
        return {"family": family, "rope": _plain(read_rope(path, family, settings)), "positions": _POSITIONS, **kept}
    if FAMILIES[family].original_positions is None:  # these compute with it only where the rest was misread, too
        kept.pop("original_max_position_embeddings", None)
    rope = _rope(family, {name: kept.pop(name, None) for name in _ROPE})
    if all(kind in _LENGTH_BLIND for kind in _kinds(rope)):
        kept.pop("max_position_embeddings", None)
    return {"family": family, "rope": rope, **kept}


def _rope(family: str, said: dict[str, Any]) -> dict[str, Any]:
    """Bring RoPE's settings into one spelling: transformers 4 wrote `rope_theta` and `rope_scaling`, 5 writes
    `rope_parameters`. Where the family merges them in a way of its own they are kept as they stand: two spellings may
    then be two models, but never two models one."""
    if FAMILIES[family].has_tables_by_kind:
        return {"as_said": {name: value for name, value in said.items() if value is not None}}
    found = _object(said.pop("rope_scaling")) or _object(said.pop("rope_parameters"))
    of_all = {name: said[name] for name in ("rope_theta", "partial_rotary_factor") if said[name] is not None}
    return _each_kind(found, lambda one: _one_rope({**of_all, **one}))


def _one_rope(rope: dict[str, Any]) -> dict[str, Any]:
    kind = rope.get("rope_type") or rope.get("type") or "default"
    rest = {name: value for name, value in rope.items() if name not in ("rope_type", "type") and value is not None}
    return rest if kind == "default" else {"rope_type": kind, **rest}


def _kinds(rope: dict[str, Any]) -> list[Any]:
    """The kind of each table; None if that is not looked into."""
    if "as_said" in rope:
        return [None]
    each = [value for value in rope.values() if isinstance(value, dict)] if _by_kind_of_layer(rope) else [rope]
    return [one.get("rope_type", "default") for one in each]


def _each_kind(rope: dict[str, Any], change: Callable[[dict[str, Any]], dict[str, Any]]) -> dict[str, Any]:
    """Apply `change` to the whole, or to the table of every kind of layer where they have one each."""
    if not _by_kind_of_layer(rope):
        return change(rope)
    return {name: change(value) if isinstance(value, dict) else value for name, value in rope.items()}


def _by_kind_of_layer(rope: dict[str, Any]) -> bool:
    return any(isinstance(value, dict) for value in rope.values())


def _object(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _plain(value: Any) -> Any:
    """Turn 10000.0 into 10000, at any depth: JSON has but one kind of number."""
    if isinstance(value, dict):
        return {name: _plain(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [_plain(inner) for inner in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value
