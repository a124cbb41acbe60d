"""Calibration: a model reads texts once, and the facts that indexes and codecs need about its layers go into a profile.

Layer by layer, as in prefill: all contexts pass a layer before any enters the next, so that only one layer's keys
are held, and its codebooks are learned before the next layer begins. Keys and queries are taken before RoPE; queries
are turned to the distance at which the paper scores keys (A2ATS, arXiv 2502.12665). Pages for codecs (KVQuant, arXiv
2401.18079) are as a store has them: keys with their positions applied.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ...retrieval.structures.codebook import MAX_CODEWORDS, learn_codebooks, query_metric, score_error
from ...storage.codecs.code_points import learn_points
from ...storage.files.file_names import as_text
from ...storage.transfer import clock
from ..chat.documents import read_text_file
from ..engine.layerwise import PAGE_SIZE, Sides, layer_by_layer
from ..engine.profile import Profile, default_path, refuse_later
from ..model.conversion import tell
from ..model.identity import model_digests
from ..model.locate import cache_dir, locate
from ..model.model import Model
from ..process.devices import pick_device, pick_dtype
from ..process.outputs import check_outputs
from .options import Ticker

CODEWORDS, TOKENS = 1024, 16384
"""Defaults: sixteen keys per codeword. SmolLM2-135M at a budget of 512 of 8,000 tokens: 256, 1024 and 4096 codewords
find 0.935, 0.937 and 0.938 of the attention weight of two layers, while the cost of a step grows with them."""
CONTEXT = 2048
"""Tokens of a context, which is read in one piece."""
DISTANCE = 2048
"""The paper's b: the distance in tokens that every key is taken to have from the query."""
_PAGES = 128
"""Pages of a layer that codecs learn from, spread evenly over all contexts."""


class Captured(NamedTuple):
    """What was seen of one layer."""

    keys: Tensor
    """`[G, n, D]` of all contexts, before RoPE."""
    grams: Tensor
    """Q^T Q, fp64 `[contexts, G, D, D]`, of queries turned to one distance."""
    pages: Tensor
    """`[p, S, G, L, D]`."""
    sensitivity: Tensor
    """Mean square of the queries `[G, D]`, with their positions applied."""


@dataclass(frozen=True, slots=True)
class Calibration:
    """The results of a calibration."""

    path: Path
    num_bytes: int
    num_layers: int
    num_tokens: int
    codewords: int
    seconds: float
    compared: list[tuple[int, float, float]]
    """(layer, error, error with plain k-means) of some layers: mean squared error of q.k on text that was not learned
    from, as a share of its variance, mean over KV heads."""


def calibrate(
    model: str, texts: list[Path], *, device: str = "auto", dtype: str = "auto", codewords: int = CODEWORDS,
    tokens: int = TOKENS, out: Path | None = None, ticker: Ticker,
    on_convert: Callable[[str], None] = tell,
) -> Calibration:  # fmt: skip
    """Learn a model's profile and write it.

    Args:
        texts: files to learn from, unlike each other if possible. tokens: number of theirs to read, in contexts
            spread evenly over all texts; one more context is read to test on.
        out: the file to write. None: the one that the runtime looks for.

    Raises:
        ValueError: a number is out of range, or the texts are too short. ModelFileError: no such model.
        OSError: a text cannot be read, or the file not written; then it says where the profile is instead.
    """
    if tokens < 1:
        raise ValueError(f"tokens is at least 1, not {tokens}")
    if not 1 <= codewords <= min(MAX_CODEWORDS, tokens):
        raise ValueError(f"codewords is 1 to {MAX_CODEWORDS}, and at most as many as tokens, not {codewords}")
    check_outputs(out)
    words = [read_text_file(path) for path in texts]
    started = clock.now()
    where = pick_device(device)
    kind = pick_dtype(dtype, where)
    directory = locate(model, kind, on_convert=on_convert)
    path = default_path(directory) if out is None else out
    refuse_later(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    check_outputs(path)
    loaded = Model.load(directory, where, getattr(torch, kind))
    read, tested = _contexts(loaded, words, tokens)
    ticker.start(max(loaded.tiered) + 1)
    layers, compared = _learn(loaded, [*read, tested], codewords, ticker)
    notes = {"tokens": sum(map(len, read)), "codewords": codewords, "context": len(tested)}
    size = _keep(Profile(model_digests(directory)[0], layers, notes), path)
    return Calibration(
        path, size, len(layers), notes["tokens"], codewords, clock.now() - started, compared
    )  # fmt: skip


def _keep(profile: Profile, path: Path) -> int:
    """Save the profile; returns its bytes. Where that fails after all the work, save it where there is room. Raises
    OSError."""
    try:
        return profile.save(path)
    except OSError as error:
        name = f"stratakv-profile-{profile.digest().hex()}.safetensors"
        for folder in (cache_dir() / "profiles", Path(tempfile.gettempdir()), Path.cwd()):
            with suppress(OSError):
                folder.mkdir(parents=True, exist_ok=True)
                profile.save(folder / name)
                break
        else:
            raise
        raise OSError(
            f"{as_text(path)}: could not be written ({error.strerror}); the profile is kept in "
            f"{as_text(folder / name)}: move it, or use it where it is (profile=)"
        ) from error


def _contexts(model: Model, texts: list[str], tokens: int) -> tuple[list[np.ndarray], np.ndarray]:
    """The contexts to learn from, and one to test on, all of one length."""
    before = model.tokenizer("").input_ids  # the tokens that this model expects before any text
    length = min(CONTEXT, max(1, tokens // 4), model.max_positions) - len(before)
    pieces = []
    for text in texts:
        ids = model.tokenizer(text, add_special_tokens=False).input_ids
        pieces += [ids[at : at + length] for at in range(0, len(ids) - length + 1, length)]
    needed = -(-tokens // length) + 1
    if len(pieces) < needed:
        raise ValueError(
            f"the texts hold {len(pieces)} whole contexts of {length} tokens, and {needed} are needed to learn from "
            f"{tokens} tokens and test on one more; give more text, or learn from fewer tokens"
        )
    spread = [np.array([*before, *pieces[i * len(pieces) // needed]]) for i in range(needed)]
    tested = spread.pop(needed // 2)
    return spread, tested


@torch.inference_mode()
def _learn(
    model: Model, contexts: list[np.ndarray], codewords: int, ticker: Ticker
) -> tuple[dict[int, dict[str, Tensor]], list[tuple[int, float, float]]]:
    """Learn every tiered layer's part of the profile, and measure errors of some layers. The last context is not
    learned from."""
    distance = min(DISTANCE, model.max_positions - 1)
    looked_at = {model.tiered[0], model.tiered[len(model.tiered) // 2], model.tiered[-1]}
    layers, compared = {}, []
    for layer, (keys, grams, pages, sensitivity) in _captured(model, contexts, distance, ticker):
        rows = contexts[-1].shape[0]
        read, tested = keys[:, :-rows], keys[:, -rows:]
        books = learn_codebooks(read, query_metric(grams[:-1].sum(0)), codewords)
        points = learn_points(pages.float().cpu().numpy(), sensitivity.float().cpu().numpy())
        layers[layer] = {
            **books, "distance": torch.tensor(distance),
            **{name: torch.from_numpy(learned) for name, learned in points.items()},
        }  # fmt: skip
        if layer in looked_at:
            even = torch.eye(keys.shape[-1], dtype=torch.float64).expand(len(keys), -1, -1)
            plain = learn_codebooks(read, even, codewords)
            errors = [score_error(tested, grams[-1], found).mean().item() for found in (books, plain)]
            compared.append((layer, errors[0], errors[1]))
    return layers, compared


def _captured(
    model: Model, contexts: list[np.ndarray], distance: int, ticker: Ticker
) -> Iterator[tuple[int, Captured]]:
    """Yield each tiered layer and what was seen of it."""
    size = len(contexts[0])
    reach, turned = model.rope.reach(size), torch.full((size,), distance, device=model.device)
    seen: list[Captured] = []
    page = min(PAGE_SIZE, size)
    every = max(1, len(contexts) * (size // page) // _PAGES)

    def see(layer: int, plain: Sides, rotated: Sides, values: Tensor, scale: float) -> None:
        (q, k), groups, dim = rotated, len(plain[1]), plain[1].shape[2]
        far = model.rotation(layer, reach).rotate(plain[0], turned).reshape(groups, -1, dim)
        sides = torch.stack([k, values]) if model.value_dim is None else k.unsqueeze(0)
        whole = sides[:, :, : size - size % page].reshape(*sides.shape[:2], -1, page, dim)[:, :, ::every]
        asked = q.float().square().mean(1).reshape(groups, -1, dim).mean(1)
        seen.append(Captured(plain[1], (far.mT @ far).double(), whole.movedim(2, 0).contiguous(), asked))

    for layer in layer_by_layer(model, contexts, see, lambda layer: ticker.advance(f"layer {layer}")):
        if seen:
            keys, grams, pages, asked = zip(*seen, strict=True)
            yield layer, Captured(torch.cat(keys, 1), torch.stack(grams), torch.cat(pages), torch.stack(asked).mean(0))
            seen.clear()
