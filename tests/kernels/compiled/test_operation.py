"""Operations are kept under keys that the next process has as well."""

from __future__ import annotations

import subprocess
import sys
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules

import pytest

pytest.importorskip("numba")

from stratakv.kernels.compiled.kept import Cache

ALL = """
import sys
from pathlib import Path
from stratakv.kernels.compiled import attention, block_products, blocks, choice, heads, products, record, scores
from stratakv.kernels.compiled import sharpen, widening, work
from stratakv.kernels.compiled.kept import Cache
from stratakv.kernels.compiled.operation import Operation
Cache.folder = Path(sys.argv[1])
modules = [attention, block_products, choice, heads, products, scores, sharpen, work]
found = {f"{m.__name__} {name}": o for m in modules for name, o in vars(m).items() if isinstance(o, Operation)}
for kind, (numbers, _) in record.BLOCKS.items():
    if kind != record.I8:
        found[f"widen {kind}"] = widening.widen(kind)
    if numbers > 1:
        found[f"rows {kind}"] = blocks.rows(kind, rounded=True)
for name, operation in found.items():
    assert operation.address
    print(name, operation._code.cache_hits == 1, sep=": ")
"""


def compiled_in_a_process(folder: Path) -> dict[str, str]:
    """Whether a process that asks for every operation finds it in a folder."""
    done = subprocess.run([sys.executable, "-c", ALL, str(folder)], capture_output=True, text=True, check=True)
    return dict(line.split(": ") for line in done.stdout.splitlines())


def test_a_second_process_compiles_nothing() -> None:
    assert Cache.folder is not None
    first, second = (compiled_in_a_process(Cache.folder) for _ in range(2))
    assert len(first) > 25
    assert set(second) == set(first)
    assert set(second.values()) == {"True"}


def test_every_loop_is_a_part_of_what_calls_it() -> None:
    """Else a process that compiles computes other bits than those that find the code kept."""
    from numba.core.dispatcher import Dispatcher

    from stratakv.kernels import compiled

    modules = [import_module(f"{compiled.__name__}.{m.name}") for m in iter_modules(compiled.__path__)]
    loops = {f"{m.__name__}.{n}": o for m in modules for n, o in vars(m).items() if isinstance(o, Dispatcher)}
    assert len(loops) > 50
    assert not [name for name, one in loops.items() if not one.targetoptions.get("forceinline")]
