"""What a codec makes of a model's KV: bytes, error, what a model then says, and pace.

    python examples/bench/disk_codecs.py [--tokens 4096] [--page-sizes 16,64] [--dtypes bfloat16,float32]
        [--codecs SPEC,..] [--out FILE]

SmolLM2 reads the bundled novel in fp32. Every page of its KV, as fp32 and rounded to bf16, goes through every codec
and back. What a codec has to learn it learns from the 2,048 tokens behind those. Then the next 64 tokens are read over
what came back: the error of attention's output, with the queries of a model that read exactly, and the KL of the next
token. `un-rotated` rows encode keys before positions are applied and rotate them again after decoding, which no cache
does yet. A lossless codec must return every bit, or nothing is reported. `payload_per_raw_byte` is what the codec
writes, `disk_per_raw_byte` what an LMDB file with all of the records grows by: their headers, and LMDB's rounding of
each to 4 KiB, weigh more the smaller a page is. Paces are of one thread, one page after another, as the store writes
and reads them.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from builds import write_result
from torch import Tensor

from stratakv.runtime import KVConfig, Runtime
from stratakv.runtime.evaluation.plain import PlainModel
from stratakv.runtime.model.model import Model
from stratakv.runtime.process.hardware import hardware
from stratakv.storage import DiskTier, PageLayout, page_key
from stratakv.storage.codecs import CODECS, LOSSLESS, make_codec
from stratakv.storage.codecs.code_points import learn_points
from stratakv.storage.codecs.codec import Profile
from stratakv.storage.disk import record
from stratakv.storage.files.scratch import scratch_folder

DOCUMENT = Path(__file__).parents[1] / "northanger_abbey.txt"
CHUNK, ASKED, ROUNDS = 512, 64, 3
TIMED_PAGES = 512
LEARNED = 2048
"""Tokens that codecs learn from."""


class Listening(PlainModel):
    """Keeps the queries of the last tokens read, by layer: `[H, T, D]` and their scale."""

    def __init__(self, model: Model) -> None:
        super().__init__(model)
        self.queries: dict[int, tuple[Tensor, float]] = {}

    def over(self, keys: list[Tensor], values: list[Tensor], length: int) -> Listening:
        """A sequence with another past."""
        twin = Listening(self.model)
        twin.length, twin.keys, twin.values = length, list(keys), list(values)
        return twin

    def _attention(self, q: Tensor, layer: int, seen: Tensor, scale: float) -> Tensor:
        self.queries[layer] = (q, scale)
        return super()._attention(q, layer, seen, scale)


@dataclass(frozen=True)
class Past:
    """Rotated keys and values `[G, n, D]` by layer, whole pages, rounded to a dtype."""

    keys: list[Tensor]
    values: list[Tensor]
    layout: PageLayout

    def pages(self, layer: int, keys: Tensor) -> np.ndarray:
        """uint8 `[pages, page_bytes]`."""
        kv = torch.stack([keys, self.values[layer]], 1)  # [G, 2, n, D]
        groups, _, length, dim = kv.shape
        size = self.layout.page_size
        cut = kv.reshape(groups, 2, length // size, size, dim).permute(2, 0, 1, 3, 4).contiguous()
        return cut.to(getattr(torch, self.layout.dtype)).view(torch.uint8).flatten(1).numpy()

    def opened(self, pages: np.ndarray) -> tuple[Tensor, Tensor]:
        """Keys and values, fp32 `[G, n, D]`."""
        layout = self.layout
        shape = (-1, layout.num_heads, 2, layout.page_size, layout.head_dim)
        kv = torch.from_numpy(pages).view(getattr(torch, layout.dtype)).view(shape).float()
        both = kv.permute(2, 1, 0, 3, 4).flatten(2, 3)
        return both[0], both[1]


class Error:
    """Root mean square relative to the truth's, and the largest, over everything added."""

    def __init__(self) -> None:
        self.squares = self.true_squares = self.largest = 0.0

    def add(self, found: Tensor, true: Tensor) -> None:
        off = (found - true).double()
        self.squares += float(off.square().sum())
        self.true_squares += float(true.double().square().sum())
        self.largest = max(self.largest, float(off.abs().max()))

    def as_dict(self) -> dict[str, float]:
        return {"relative": (self.squares / self.true_squares) ** 0.5, "max": self.largest}


def attention(q: Tensor, scale: float, keys: Tensor, values: Tensor) -> Tensor:
    """Over the past alone: q `[H, T, D]`, keys and values `[G, n, D]`."""
    repeats = q.shape[0] // keys.shape[0]
    return (q @ keys.repeat_interleave(repeats, 0).mT * scale).softmax(-1) @ values.repeat_interleave(repeats, 0)


def through(
    past: Past, exact: Listening, name: str, rotated: bool, profiles: list[Profile], kl: Callable[[Past], float]
) -> dict[str, Any]:
    """One codec over all pages of all layers."""
    model, lossless, lossy_pages = exact.model, make_codec("zstd", past.layout), 0
    errors = {"keys": Error(), "values": Error(), "attention": Error()}
    found, payloads = Past([], [], past.layout), []
    for layer, true in enumerate(past.keys):
        rotation, positions = model.rotation(layer), torch.arange(true.shape[1])
        pages = past.pages(layer, true if rotated else rotation.unrotate(true, positions))
        codec, back = make_codec(name, past.layout, profiles[layer]), np.empty_like(pages)
        for number, (page, out) in enumerate(zip(pages, back, strict=True)):
            writer = lossless if codec.keeps_first and not number else codec
            payloads.append(writer.encode(page))
            writer.decode(memoryview(payloads[-1]), out)
        lossy_pages += int((pages != back).any(1).sum())
        keys, values = past.opened(back)
        if not rotated:
            keys = rotation.rotate(keys, positions)
        found.keys.append(keys)
        found.values.append(values)
        errors["keys"].add(keys, true)
        errors["values"].add(values, past.values[layer])
        q, scale = exact.queries[layer]
        errors["attention"].add(attention(q, scale, keys, values), attention(q, scale, true, past.values[layer]))
    if name in LOSSLESS and rotated and lossy_pages:
        raise SystemExit(f"{name} changed {lossy_pages} pages: nothing is reported")
    raw = sum(keys.numel() * 2 for keys in past.keys) * past.layout.item_bytes
    return {
        "codec": name, "dtype": past.layout.dtype, "page_size": past.layout.page_size,
        "keys": "rotated" if rotated else "un-rotated",
        "payload_per_raw_byte": sum(map(len, payloads)) / raw,
        "disk_per_raw_byte": disk_bytes(payloads, past.layout) / raw,
        **{f"{of}_error": error.as_dict() for of, error in errors.items()},
        "mean_kl": kl(found),
    }  # fmt: skip


def disk_bytes(payloads: list[bytes], layout: PageLayout) -> int:
    """What the records of these pages take in an LMDB file."""
    tokens, name = np.zeros(layout.page_size, dtype=np.uint32), bytes(16)
    with scratch_folder("bench") as folder:
        disk = DiskTier(Path(folder), 2 * layout.page_bytes * len(payloads) + (16 << 20), name, {})
        keys = [page_key(0, number.to_bytes(16, "big")) for number in range(len(payloads))]
        packed = [
            record.pack(record.PAGE, name, key, payload, raw_bytes=layout.page_bytes, tokens=tokens)
            for key, payload in zip(keys, payloads, strict=True)
        ]
        disk.write_pages(list(zip(keys, packed, strict=True)))
        used = disk.used_bytes
        disk.close()
    return used


def pace(past: Past, name: str, profile: Profile) -> dict[str, float]:
    """Raw MB/s of pages spread over the layers."""
    every = np.concatenate([past.pages(layer, keys) for layer, keys in enumerate(past.keys[:: len(past.keys) // 4])])
    pages = every[:: max(1, len(every) // TIMED_PAGES)]
    codec, out = make_codec(name, past.layout, profile), np.empty(past.layout.page_bytes, dtype=np.uint8)
    times: dict[str, list[float]] = {"encode": [], "decode": []}
    for _ in range(ROUNDS):
        started = time.perf_counter()
        payloads = [codec.encode(page) for page in pages]
        between = time.perf_counter()
        for payload in payloads:
            codec.decode(memoryview(payload), out)
        times["encode"].append(between - started)
        times["decode"].append(time.perf_counter() - between)
    return {f"{call}_mb_per_s": pages.nbytes / 1e6 / statistics.median(spent) for call, spent in times.items()}


def learned(model: Model, ids: np.ndarray) -> dict[bool, list[Profile]]:
    """What codecs learn of each layer from these tokens, as `stratakv calibrate` does; by whether keys are rotated."""
    reader = Listening(model)
    found: dict[bool, list[Profile]] = {True: [], False: []}
    for start in range(0, len(ids), CHUNK):
        reader.read(ids[start : start + CHUNK])
    for layer, (keys, values) in enumerate(zip(reader.keys, reader.values, strict=True)):
        groups, length, dim = keys.shape
        queries, _ = reader.queries[layer]
        squares = queries.square().mean(1).view(groups, -1, dim).mean(1)
        plain = model.rotation(layer).unrotate(keys, torch.arange(length))
        for rotated, side in ((True, keys), (False, plain)):
            pages = torch.stack([side, values]).view(2, groups, length // 16, 16, dim).movedim(2, 0)
            found[rotated].append(learn_points(pages.numpy(), squares.numpy()))
    return found


def measure(
    model: Model, ids: np.ndarray, behind: np.ndarray, page_sizes: list[int], dtypes: list[str], specs: list[str]
) -> list[dict[str, Any]]:
    """Codecs over the KV of all tokens but the last, which ask. Those `behind` are learned from."""
    profiles = learned(model, behind)
    reader, length = Listening(model), len(ids) - ASKED
    for start in range(0, length, CHUNK):
        reader.read(ids[start : min(start + CHUNK, length)])
    keys, values, asked = list(reader.keys), list(reader.values), ids[length:]
    rows = []
    for size, dtype in itertools.product(page_sizes, dtypes):
        kind = getattr(torch, dtype)
        layout = PageLayout(num_heads=model.num_kv_heads, page_size=size, head_dim=model.head_dim, dtype=dtype)
        past = Past([k.to(kind).float() for k in keys], [v.to(kind).float() for v in values], layout)
        exact = reader.over(past.keys, past.values, length)
        true = exact.read_all(asked).log_softmax(-1)

        def kl(found: Past, true: Tensor = true) -> float:
            said = reader.over(found.keys, found.values, length).read_all(asked).log_softmax(-1)
            return float((true.exp() * (true - said)).sum(-1).mean())

        for name in specs:
            for rotated in (True, False):
                if rotated or name not in LOSSLESS:
                    row = through(past, exact, name, rotated, profiles[rotated], kl)
                    rows.append({**row, **(pace(past, name, profiles[True][0]) if rotated else {})})
                    print(json.dumps(rows[-1]), file=sys.stderr)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--page-sizes", default="16,64")
    parser.add_argument("--dtypes", default="bfloat16,float32")
    parser.add_argument("--codecs", default=",".join(CODECS))
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    page_sizes = [int(size) for size in given.page_sizes.split(",")]
    if any(given.tokens % size for size in page_sizes):
        parser.error(f"--tokens is a multiple of the page sizes, {given.page_sizes}")
    torch.set_num_threads(1)
    with (
        torch.inference_mode(),
        scratch_folder("bench") as folder,
        Runtime.load("smollm2", dtype="float32", kv=KVConfig(path=folder, disk_gb=0)) as runtime,
    ):
        every = np.array(runtime.tokenizer.encode(DOCUMENT.read_text()), dtype=np.uint32)
        ids, behind = np.split(every[: given.tokens + ASKED + LEARNED], [given.tokens + ASKED])
        rows = measure(runtime.model, ids, behind, page_sizes, given.dtypes.split(","), given.codecs.split(","))
    result: dict[str, Any] = {
        "command": " ".join(["python", *sys.argv]), "hardware": hardware(), "load_average": os.getloadavg()[0],
        "model": "smollm2", "text": DOCUMENT.name, "tokens": given.tokens, "asked": ASKED, "rows": rows,
    }  # fmt: skip
    write_result(result, given.out)


if __name__ == "__main__":
    main()
