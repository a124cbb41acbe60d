"""GGUF to safetensors, once per file and dtype: a folder in the model cache, there whole or not at all.

What it needs is known before it begins: the weights in the wanted dtype, and a tokenizer that is told at more length
than in the GGUF file's header. What a killed conversion left is removed by the next one (`storage.scratch`).
"""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..storage.scratch import remove_dead, scratch_folder, whole_file
from .errors import ModelFileError
from .numbers_check import check_complete, reading

logger = logging.getLogger(__name__)

_GB = 10**9
_TOKENIZER_GROWTH = 6
"""Bytes of `tokenizer.json` for each of the GGUF file's header: 2.0 in SmolLM2, 5.1 in Gemma 3."""
_OTHER_FILES = 1 << 20
_ITEM_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


def tell(what: str) -> None:
    """What is said of a conversion where nobody asked to be told."""
    logger.info("converting %s once; later starts skip this", what)


def convert(gguf: Path, dtype: str, target: Path, on_convert: Callable[[str], None]) -> None:
    """Make `target`, a new folder in the model cache.

    Args:
        on_convert: told, before it begins, the file's name, what the conversion needs and what is free.

    Raises ModelFileError: the file is damaged, or there is no room for what is made of it.
    """
    from .gguf_check import check_gguf

    found = check_gguf(gguf)
    needed = found.elements * _ITEM_BYTES[dtype] + found.header_bytes * _TOKENIZER_GROWTH + _OTHER_FILES
    with _room_for(gguf, needed, target.parent) as room, scratch_folder("convert", target.parent) as scratch:
        on_convert(f"{gguf.name} ({room})")
        made = scratch / "made"
        made.mkdir(mode=0o700)
        _write(gguf, dtype, scratch, made)
        try:
            os.rename(made, target)
        except OSError:
            if not (target / "config.json").is_file():  # another process finished first otherwise
                raise


def join(parts: list[Path], target: Path) -> None:
    """Make one file of a GGUF file's parts. Raises ModelFileError: there is no room for it."""
    size = sum(part.stat().st_size for part in parts)
    with _room_for(target, size, target.parent), whole_file(target) as file:
        for part in parts:
            with part.open("rb") as source:
                shutil.copyfileobj(source, file, 1 << 20)


@contextmanager
def _room_for(what: Path, needed: int, folder: Path) -> Iterator[str]:
    """Refuses before and explains after: in the block files are written, by others' libraries too, each of which says
    in its own way that a disk is full. Yields what is needed and what is free, for people."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        remove_dead(folder)  # what it took is free again
        free = shutil.disk_usage(folder).free
        room = f"needs {needed / _GB:.3g} GB in {folder}, {free / _GB:.3g} GB are free"
        if free < needed:
            raise ModelFileError(f"{what}: no room to convert it: {room}; {_REMEDY}")
        yield room
    except Exception as error:
        from safetensors import SafetensorError

        if not isinstance(error, OSError | SafetensorError) and type(error) is not Exception:  # tokenizers' own
            raise
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ModelFileError(
            f"{what}: could not be converted ({reason}): needs {needed / _GB:.3g} GB in {folder}; {_REMEDY}"
        ) from error


_REMEDY = "make room there, or have XDG_CACHE_HOME name a folder with more"


def _write(gguf: Path, dtype: str, alone: Path, made: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    where: dict[str, Any] = {"gguf_file": "model.gguf", "local_files_only": True, "trust_remote_code": False}
    with _no_bars(), reading(gguf, "a readable GGUF model"):
        os.symlink(gguf.resolve(), alone / "model.gguf")  # transformers would read what lies beside it as well
        tokenizer = AutoTokenizer.from_pretrained(alone, **where)
        model, found = AutoModelForCausalLM.from_pretrained(
            alone, quantization_config=GgufConfig(dequantize=True), dtype=getattr(torch, dtype),
            output_loading_info=True, **where,
        )  # fmt: skip
        check_complete(gguf, found)
    with _no_bars():
        model.save_pretrained(made)
        tokenizer.save_pretrained(made)


@contextmanager
def _no_bars() -> Iterator[None]:
    """transformers draws bars, also into logs and across a prompt; one of them whatever it is told."""
    from transformers import modeling_gguf_pytorch_utils as drawing

    from .apart import without_progress_bar

    bar = drawing.tqdm
    drawing.tqdm = lambda items, **_: items
    try:
        with without_progress_bar():
            yield
    finally:
        drawing.tqdm = bar
