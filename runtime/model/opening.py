"""Reading a model directory from its configuration to its modules: each file once, and what is wrong named."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from ...storage.files.file_names import readable_path
from ..untrusted.numbers import reading
from .decoder import Decoder
from .model_files import check_vocabulary, own_modules, read_configuration, transformers_modules
from .packing import packing_of
from .tokens import load_tokenizer

if TYPE_CHECKING:
    from .file_weights import FileWeights


class Opened(NamedTuple):
    """What a directory has."""

    hf: Any
    """The modules: ours, or transformers'."""
    tokenizer: Any
    in_file: FileWeights | None
    """Has the modules' matrices; None: they have them themselves."""


def open_modules(
    directory: Path, device: torch.device, dtype: torch.dtype, weights: str, modules: str, files: Sequence[Path],
    on_tokenizer: Callable[[Any], object],
) -> Opened:  # fmt: skip
    """Read all of it. Arguments, and what is raised: as `Model.load` has them."""
    with readable_path(directory) as path:
        found = None
        if weights == "file":
            from .gguf.directory import read_model

            found = read_model(files)
        with reading(directory / "config.json", "a readable configuration"):
            config = read_configuration(path, modules, has_weights=found is None)
        if (packing := packing_of(weights, device)) is not None:
            packing.check(Decoder(config))
        with reading(directory / "tokenizer.json", "a readable tokenizer"):
            tokenizer = load_tokenizer(path, config)
            check_vocabulary(tokenizer, config.vocab_size, directory)
        tokenizer.name_or_path = str(directory)
        on_tokenizer(tokenizer)
        in_file = None
        with reading(directory if found is None else files[0], "a readable model"):
            if found is not None:
                from .file_weights import FileWeights

                in_file = FileWeights(found, dtype)
                hf = in_file.decoder(config, path)
            elif modules == "own":
                hf = own_modules(path, config, dtype, device, packing)
            else:
                hf = transformers_modules(path, config, dtype, device)
        hf.config.name_or_path = str(directory)
    return Opened(hf, tokenizer, in_file)
