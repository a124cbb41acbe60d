"""Profiles: what `stratakv calibrate` learned about a model, for indexes and codecs that cannot work without.

One safetensors file per model: tensors `layer.N.NAME`, and in its metadata what they were learned from, for which
model, and a digest over all of them. Nothing is pickled.
"""

from __future__ import annotations

import json
import logging
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
import xxhash
from torch import Tensor

from ...retrieval.registry import index_class
from ...storage.codecs.registry import profile_part
from ..api.config import KVConfig
from ..api.errors import LaterProfileError, ProfileError
from ..model.identity import model_digests
from ..model.locate import cache_dir
from ..process.outputs import output
from ..untrusted.numbers import is_count

logger = logging.getLogger(__name__)

_FORMAT = 1
_KEY = "stratakv_profile"


@dataclass(frozen=True, slots=True)
class Profile:
    """Facts about a model's layers, learned from a text."""

    model: str
    """The first of `identity.model_digests` of the model it was learned from."""
    layers: dict[int, dict[str, Tensor]]
    notes: dict[str, Any]
    """How they were learned; JSON-serialisable."""

    def digest(self) -> bytes:
        """16 bytes over all tensors."""
        digest = xxhash.xxh3_128()
        for name, tensor in sorted(self._tensors().items()):
            digest.update(f"{name} {tensor.dtype} {list(tensor.shape)};".encode())
            digest.update(tensor.contiguous().flatten().view(torch.uint8).numpy().data)
        return digest.digest()

    def save(self, path: Path) -> int:
        """Write or replace the file in one step, but for devices and pipes; returns its bytes. Raises OSError."""
        header = {"format": _FORMAT, "model": self.model, "digest": self.digest().hex(), "notes": self.notes}
        payload = safetensors.torch.save(self._tensors(), {_KEY: json.dumps(header)})
        with output(path, 0o600) as file:
            file.write(payload)
        return len(payload)

    def _tensors(self) -> dict[str, Tensor]:
        return {f"layer.{n}.{name}": tensor for n, parts in self.layers.items() for name, tensor in parts.items()}


def load_profile(path: Path) -> tuple[Profile, str]:
    """Read a profile and its digest, in hexadecimal.

    Raises:
        OSError: it cannot be read. ProfileError: it is damaged, or no profile. LaterProfileError: a later version wrote
            it.
    """
    if os.path.exists(path) and not path.is_file():  # some devices never end
        raise ProfileError(f"{path} is no file")
    payload = path.read_bytes()
    try:
        header = json.loads(_metadata(payload)[_KEY])
        if is_count(written := header["format"]) and written > _FORMAT:
            raise LaterProfileError(
                f"{path} was written by a later version of stratakv (format {written}, this program reads {_FORMAT})"
            )
        profile = Profile(header["model"], _by_layer(safetensors.torch.load(payload)), header["notes"])
        if written == _FORMAT and profile.digest().hex() == header["digest"]:
            return profile, header["digest"]
    except (safetensors.SafetensorError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ProfileError(f"{path} is damaged, or no profile ({type(error).__name__})") from error
    raise ProfileError(f"{path} is damaged (its digest differs)")


def refuse_later(path: Path) -> None:
    """Raises LaterProfileError if a later version's profile is there: nothing of ours may take its place."""
    try:
        load_profile(path)
    except LaterProfileError as error:
        raise LaterProfileError(f"{error}; it is left as it is: write to another file (out=)") from error
    except (OSError, ProfileError):
        return


def _check_unused(path: Path, index: str, codec: str) -> None:
    """Warn that the profile asked for serves nothing. Raises ProfileError if there is none."""
    if not path.is_file():
        raise ProfileError(f"there is no profile {path}; index {index!r} needs none: leave it out (profile=)")
    logger.warning("index %r and codec %r need no profile: %s is not used", index, codec, path)


def _metadata(payload: bytes) -> dict[str, str]:
    length = int.from_bytes(payload[:8], "little")
    found: dict[str, str] = json.loads(payload[8 : 8 + length]).get("__metadata__", {})
    return found


def _by_layer(tensors: dict[str, Tensor]) -> dict[int, dict[str, Tensor]]:
    layers: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        _, number, part = name.split(".", 2)
        layers.setdefault(int(number), {})[part] = tensor
    return layers


def default_path(directory: Path) -> Path:
    """Where the profile of the model in `directory` is kept unless told otherwise: where an earlier version put it, if
    it did."""
    paths = [cache_dir() / "profiles" / f"{digest}.safetensors" for digest in model_digests(directory)]
    return next((path for path in paths if path.is_file()), paths[0])


class Profiles:
    """A model's profiles, read when an index or a codec first needs them.

    Args:
        directory: the model's. name: what the user calls it, for messages.
    """

    def __init__(self, directory: Path, name: str) -> None:
        self._directory, self.name = directory, name
        self._read: dict[Path, dict[int, dict[str, Tensor]]] = {}
        self._unused: set[Path] = set()
        """Profiles of which the log has said that they are not used."""

    def needed(self, config: KVConfig) -> dict[int, dict[str, Tensor]]:
        """Read what the index and the codec that `config` names may know, by layer; empty if they need none. Each
        layer's part holds `digest`, the whole profile's, uint8 `[16]`.

        Raises ProfileError, which names the file and the command that makes it, if it is not there or not usable.
        """
        index, _ = index_class(config.index)
        path = None if config.profile is None else Path(os.path.expanduser(config.profile))
        part = profile_part(config.codec)
        if not index.needs_profile and not part:
            if path is not None and path not in self._unused:
                _check_unused(path, index.name, config.codec)
                self._unused.add(path)
            return {}
        path = path or default_path(self._directory)
        who = f"index {index.name!r}" if index.needs_profile else f"codec {config.codec!r}"
        if path not in self._read:
            self._read[path] = self._load(path, who, own=config.profile is not None)
        if not all(any(name.startswith(part) for name in known) for known in self._read[path].values()):
            raise ProfileError(
                f"{path} has nothing for codec {config.codec!r}: an earlier version learned it; "
                f"{self._remedy(path, own=config.profile is not None)}"
            )
        return self._read[path]

    def _remedy(self, path: Path, *, own: bool) -> str:
        return f"make one with: stratakv calibrate {self.name} --text FILE" + (f" --out {path}" if own else "")

    def _load(self, path: Path, who: str, *, own: bool) -> dict[int, dict[str, Tensor]]:
        remedy = self._remedy(path, own=own)
        try:
            profile, digest = load_profile(path)
        except FileNotFoundError:
            raise ProfileError(f"{who} needs a profile of {self.name}, and there is no {path}; {remedy}") from (None)
        except OSError as error:
            raise ProfileError(f"{path} cannot be read ({error.strerror}); name another one with profile=") from error
        except LaterProfileError as error:
            raise LaterProfileError(f"{error}; it is left as it is: name another one with profile=") from error
        except ProfileError as error:
            raise ProfileError(f"{error}; {remedy}") from error
        if profile.model not in model_digests(self._directory):
            raise ProfileError(f"{path} is the profile of another model than {self.name}; {remedy}")
        stamp = torch.tensor(list(bytes.fromhex(digest)), dtype=torch.uint8)
        return {layer: {**parts, "digest": stamp} for layer, parts in profile.layers.items()}
