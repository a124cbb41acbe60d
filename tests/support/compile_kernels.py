"""Compile every Triton kernel ahead of time, as the ops launch it, for GPUs that need not be there; once, where it is
launched alike again.

    python compile_kernels.py 80 90              prints one JSON object per kernel, case and target
    python compile_kernels.py --in-turn 80 90    each case for one of the targets, in turn

The ops run on CPU tensors, and each launch is noted instead of being started: what is compiled has the very argument
types, alignments, block sizes and options that a GPU would get.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.jit import JITFunction

from stratakv.kernels.box_scores import box_scores_triton
from stratakv.kernels.choose_units import choose_units_triton
from stratakv.kernels.code_scores import code_scores_triton
from stratakv.kernels.codebook_scores import nearest_codewords_triton
from stratakv.kernels.decode_attention import decode_attention_triton
from stratakv.kernels.fetch_units import Wanted, fetch_units_triton
from stratakv.kernels.group_softmax import group_softmax_triton
from stratakv.kernels.int8_product import int8_product_triton
from stratakv.kernels.key_scores import key_scores_triton
from stratakv.kernels.landmarks import landmarks_triton
from stratakv.kernels.low_rank import rebuild_keys_triton
from stratakv.kernels.merge_states import merge_states_triton
from stratakv.kernels.page_bounds import bound_scores_triton, page_bounds_triton
from stratakv.kernels.paged_attention import paged_attention_triton
from stratakv.kernels.place_units import Places, place_units_triton
from stratakv.kernels.pq_scores import pq_scores_triton
from stratakv.kernels.simhash import random_planes, simhash_triton

HALF, BRAIN, WIDE = torch.float16, torch.bfloat16, torch.float32
POINTERS = {
    torch.float16: "*fp16", torch.bfloat16: "*bf16", torch.float32: "*fp32", torch.uint8: "*u8", torch.int8: "*i8",
    torch.int16: "*i16",
    torch.int32: "*i32", torch.int64: "*i64", torch.bool: "*i1",
}  # fmt: skip


class Launch(NamedTuple):
    """A kernel as it would have been started."""

    case: str
    kernel: Any
    args: dict[str, Any]
    options: dict[str, Any]


def cases() -> Iterator[tuple[str, Callable[[], Any]]]:
    """Ops with arguments; the dtypes and head dims that differ in how they are compiled."""
    for heads, dim, dtype in [(1, 64, HALF), (8, 80, BRAIN), (8, 256, WIDE)]:
        q, k = torch.zeros(8, heads, dim, dtype=dtype), torch.zeros(8, 2048, dim, dtype=dtype)
        yield f"{heads}x{dim}", partial(decode_attention_triton, q, [(k, k)], scale=0.1, splits=16)
    q, k = torch.zeros(8, 4, 128, dtype=BRAIN), torch.zeros(8, 512, 128)
    yield "rebuilt keys", partial(decode_attention_triton, q, [(k, k.to(BRAIN))], scale=0.1, splits=4)
    for heads, dim, dtype in [(4, 128, BRAIN), (1, 256, WIDE)]:
        q, pool = torch.zeros(2, 8, heads, dim, dtype=dtype), torch.zeros(9, 8, 2, 16, dim, dtype=dtype)
        of = q, pool, torch.zeros(2, 64, dtype=torch.int32), torch.zeros(2, 8, 512, dtype=torch.int64)
        yield f"{heads}x{dim}", partial(paged_attention_triton, *of, unit=4, scale=0.1, splits=16)
        whole: dict[str, Any] = {
            "counts": torch.zeros(2, 8, dtype=torch.int32),
            "lengths": torch.zeros(2, dtype=torch.int64),
        }
        whole |= {
            "bias": torch.zeros(2, 8, heads, 2048),
            "cos": torch.zeros(99, dim // 2),
            "sin": torch.zeros(99, dim // 2),
        }
        yield f"{heads}x{dim} with all", partial(paged_attention_triton, *of, unit=4, scale=0.1, splits=16, **whole)
    values, keys = torch.zeros(9, 8, 1, 32, 128, dtype=BRAIN), torch.zeros(2, 8, 2048, 128)
    of = torch.zeros(2, 8, 4, 128, dtype=BRAIN), values, torch.zeros(2, 64, dtype=torch.int32)
    of = *of, torch.zeros(2, 8, 512, dtype=torch.int32)
    counted = {"counts": torch.zeros(2, 8, dtype=torch.int64), "keys": keys}
    yield "other keys", partial(paged_attention_triton, *of, unit=4, scale=0.1, splits=16, **counted)
    yield "3 parts", partial(merge_states_triton, [torch.zeros(32, 128, dtype=HALF)] * 3, [torch.zeros(32)] * 3)
    boxes = torch.zeros(8, 1024, 256, dtype=HALF)
    yield "of 16", partial(page_bounds_triton, torch.zeros(8, 512, 128, dtype=BRAIN), 16)
    yield "upper", partial(bound_scores_triton, torch.zeros(8, 4, 128), boxes)
    yield "both", partial(box_scores_triton, torch.zeros(8, 4, 128), boxes, torch.zeros(8, dtype=torch.int64))
    counts = torch.zeros(8, dtype=torch.int64)
    yield "keys", partial(key_scores_triton, torch.zeros(8, 4, 128), torch.zeros(8, 4096, 128, dtype=BRAIN), counts)
    for heads, kind in [(4, {}), (3, {"logs": True}), (5, {"best": True})]:
        yield f"{heads} heads", partial(group_softmax_triton, torch.zeros(8, heads, 8192), counts, **kind)
    yield "of 8", partial(landmarks_triton, torch.zeros(8, 512, 128, dtype=BRAIN), 8)
    low_rank = torch.zeros(4096, 160, dtype=HALF), torch.zeros(8, 128, 160), torch.zeros(8, 512, dtype=torch.int64)
    yield "plain", partial(rebuild_keys_triton, *low_rank)
    yield "rotated", partial(rebuild_keys_triton, *low_rank, torch.zeros(4096, 64), torch.zeros(4096, 64))
    keys, metric, words = torch.zeros(8, 512, 128), torch.zeros(8, 128, 128), torch.zeros(8, 1024, 128)
    yield "1024 words", partial(nearest_codewords_triton, keys, metric, words, torch.zeros(8, 1024))
    yield "6 parts", partial(pq_scores_triton, torch.zeros(8, 4, 6, 256), torch.zeros(8, 4096, 6, dtype=torch.uint8))
    for batch, dtype in [(1, BRAIN), (4, WIDE)]:
        codes, scales = torch.zeros(4096, 14336, dtype=torch.int8), torch.zeros(4096, dtype=dtype)
        yield f"{batch} rows", partial(int8_product_triton, torch.zeros(batch, 14336, dtype=dtype), codes, scales)
    yield "150 tables", partial(simhash_triton, keys, random_planes(128, 10, 150, seed=0))
    books, codes = torch.zeros(8, 6, 8, 256), torch.zeros(8, 131072, 6, dtype=torch.uint8)
    of = books, codes, torch.zeros(8, 2048, 128, dtype=BRAIN), torch.zeros(8, dtype=torch.int64)
    yield "6 parts", partial(code_scores_triton, torch.zeros(8, 4, 128), torch.zeros(8, 48, 128), *of, segment=64)
    rows = torch.zeros(8, 131072), torch.zeros(8, dtype=torch.int64), torch.zeros(8, dtype=torch.int32)
    yield "2048 of 131072", partial(choose_units_triton, *rows, most=2048, sink=16, local=64, splits=32)
    for unit, count in [(1, 2048), (16, 128)]:
        ids, places = torch.zeros(8, count, dtype=torch.int64), Places.empty(8, 8192, 4096, torch.device("cpu"))
        counts = torch.zeros(8, dtype=torch.int64) if unit == 1 else None
        yield f"{count} of 4096", partial(place_units_triton, ids, places, counts)
        tables = torch.zeros(512, dtype=torch.int32), torch.zeros(2, 8, 4096, dtype=torch.int64)
        wanted = Wanted(ids, ids.int(), ids.bool(), *tables, 2, 16 // unit)
        pages = torch.zeros(256, unit * 128, dtype=BRAIN)
        yield f"of {unit} tokens", partial(fetch_units_triton, pages, wanted, torch.zeros_like(pages))


def launches() -> list[Launch]:
    """What the ops of `cases` launch."""
    noted: list[tuple[Any, dict[str, Any], dict[str, Any]]] = []

    def note(kernel: Any, *args: Any, grid: Any, warmup: bool, **options: Any) -> None:
        named = dict(zip(kernel.arg_names, args, strict=False))
        named |= {name: options.pop(name) for name in kernel.arg_names if name in options}
        noted.append((kernel, named, options))

    JITFunction.run = note
    found = []
    for case, op in cases():
        noted.clear()
        op()
        found += [Launch(case, *one) for one in noted]
    return found


def source(launch: Launch) -> ASTSource:
    """Arguments by type, as the launcher of a GPU specialises them: on None, on 1, and on multiples of 16."""
    signature, constants, aligned = {}, {}, {}
    for place, parameter in enumerate(launch.kernel.params):
        name, value = parameter.name, launch.args[parameter.name]
        if parameter.is_constexpr or value is None or (type(value) is int and value == 1):
            signature[name], constants[name] = "constexpr", value
        elif isinstance(value, Tensor):
            signature[name] = POINTERS[value.dtype]
        else:
            signature[name] = "fp32" if isinstance(value, float) else "i32" if abs(value) < 2**31 else "i64"
        looks = signature[name] in ("i32", "i64") and not parameter.do_not_specialize_on_alignment
        if isinstance(value, Tensor) or (looks and value % 16 == 0):
            aligned[(place,)] = [["tt.divisibility", 16]]
    return ASTSource(launch.kernel, signature, constants, aligned)


def main(targets: list[int], in_turn: bool) -> None:
    once = {(of := source(launch)).hash() + str(launch.options): (launch, of) for launch in launches()}
    for number, (launch, of) in enumerate(once.values()):
        for target in [targets[number % len(targets)]] if in_turn else targets:
            compiled = triton.compile(of, target=GPUTarget("cuda", target, 32), options=launch.options)
            print(
                json.dumps(
                    {
                        "kernel": launch.kernel.__name__, "case": launch.case, "target": target,
                        "shared": compiled.metadata.shared, "cubin": len(compiled.asm["cubin"]),
                        "ptx": f"sm_{target}" in compiled.asm["ptx"],
                    }
                )
            )  # fmt: skip


if __name__ == "__main__":
    main([int(argument) for argument in sys.argv[1:] if argument.isdigit()], "--in-turn" in sys.argv)
