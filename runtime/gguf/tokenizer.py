"""From a GGUF file's `tokenizer.*` keys to the files of a tokenizer."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from ..numbers_check import reading


def write_tokenizer(path: Path, keys: Mapping[str, Any], target: Path) -> None:
    """Write tokenizer.json, tokenizer_config.json, the chat template and generation_config.json into `target`.

    Args:
        path: the file, for messages.
        keys: all of its keys as Python values.

    Raises ModelFileError: it is no tokenizer that we can make. OSError: it cannot be written.
    """
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    with TemporaryDirectory() as alone:
        os.symlink(path.resolve(), Path(alone) / "model.gguf")  # transformers would read what lies beside it as well
        of = PreTrainedTokenizerFast if keys["general.architecture"] in ("olmo2", "smollm3") else AutoTokenizer
        with _no_bars(), reading(path, "a readable GGUF model"):
            tokenizer = of.from_pretrained(alone, gguf_file="model.gguf", local_files_only=True)
    ends = {name: keys.get(f"tokenizer.ggml.{name}_token_id") for name in ("bos", "eos")}
    said = {f"{name}_token_id": value for name, value in ends.items() if value is not None}
    (target / "generation_config.json").write_text(json.dumps(said, indent=2) + "\n")
    tokenizer.save_pretrained(target)


@contextmanager
def _no_bars() -> Iterator[None]:
    """transformers draws bars, also into logs and across a prompt; one of them whatever it is told."""
    from transformers import modeling_gguf_pytorch_utils as drawing

    from ..apart import without_progress_bar

    bar = drawing.tqdm
    drawing.tqdm = lambda items, **_: items
    try:
        with without_progress_bar():
            yield
    finally:
        drawing.tqdm = bar
