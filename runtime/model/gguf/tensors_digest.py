"""The digest of a GGUF model's tensors: the same whether it is in one file or in parts, and whatever else they say."""

from __future__ import annotations

import hashlib
import json

from ...api.errors import ModelFileError
from .container import Contents
from .number_types import Tensor

_BLOCK = 1 << 18


def tensors_digest(contents: Contents) -> str:
    """A sum over names, types, shapes and bytes, in hexadecimal. Raises ModelFileError if a file ends inside one."""
    return f"{sum(map(_tensor, contents.tensors.values())) % (1 << 128):032x}"


def _tensor(tensor: Tensor) -> int:
    digest, left = hashlib.blake2b(digest_size=16), tensor.num_bytes
    with tensor.file.open("rb") as file:
        file.seek(tensor.start)
        while left:
            block = file.read(min(left, _BLOCK))
            if not block:
                raise ModelFileError(f"{tensor.file}: the file ends inside tensor {tensor.name!r}")
            digest.update(block)
            left -= len(block)
    said = json.dumps([tensor.name, tensor.kind, tensor.shape, digest.hexdigest()])
    return int(hashlib.blake2b(said.encode(), digest_size=16).hexdigest(), 16)
