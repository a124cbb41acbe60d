"""Exactness: what must be equal is equal, whatever the index reads and wherever pages lie.

Random tokens through a real model in fp32. The engine is compared with transformers where it reads
everything, and with the same model over plain tensors where it reads a part; then with itself over
tiers, threads, pieces and processes. Every check is an error and the bound it must not exceed.
"""

from __future__ import annotations

import gc
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ....storage.files.file_names import readable_path
from ....storage.files.scratch import scratch_folder
from ...api.config import KVConfig
from ...chat.runtime import Runtime
from ...engine.engine import Engine
from ...engine.profile import Profiles
from ...engine.sequence import Sequence
from ...layers.paged import PagedLayer, paged_layers
from ...layers.step import Step
from ...layers.workspace import KEY_BLOCK, Workspace
from ...model.model import Model
from ...sessions import session
from ..options import Ticker
from ..plain import PlainModel
from ..variants import Variant
from .check import Check, relative_error
from .exact_kernels import kernels
from .once import Once
from .save_and_wait import SAVED

LOGITS = 1e-4
"""The largest difference of logits, as a share of the largest logit (fp32 sums in another order)."""
NEAR_TIES = 1e-3
"""The share of choices that rounding may decide otherwise, where two scores are equal to seven digits."""
_PROMPT, _STEPS, _GREEDY = 700, 24, 64
"""More than one chunk of prefill, no whole number of pages, and enough steps to seal two of them."""
_BUDGET = 208
_PIECES, _IN_PIECES = (1, 7, 64), 70
"""Sizes of pieces, and the length of the prompt that arrives in them: more than the largest."""


Expected = Callable[[], Tensor]
"""Makes the logits `[1 + _STEPS, vocabulary]` to compare with; they are computed once."""
Take = Callable[[str, Callable[[], Iterator[Check]]], None]
"""Runs checks under a name."""


@dataclass(frozen=True, slots=True)
class Setting:
    """The model, and its device. It always computes in fp32."""

    model: str
    device: str

    @property
    def torch_device(self) -> torch.device:
        found = "cuda" if torch.cuda.is_available() else "cpu"
        return torch.device(found if self.device == "auto" else self.device)

    def config(self, **kv: Any) -> KVConfig:
        """The tiers. On a GPU they are small: by default one runtime would take most of the memory."""
        if self.torch_device.type == "cuda":
            kv = {"gpu_gb": 2.0, "host_gb": 2.0, **kv}
        return KVConfig(**kv)

    def load(self, **kv: Any) -> Runtime:
        """Load the model, with weights that transformers can read as well, and open a store."""
        return Runtime.load(self.model, device=self.device, dtype="float32", weights="own", kv=self.config(**kv))

    def open(self, model: Model, **kv: Any) -> Runtime:
        """Open a store for a model that is in memory already."""
        directory = Path(model.hf.config.name_or_path)
        return Runtime.over(model, directory, self.config(**kv), Profiles(directory, self.model))


def run(setting: Setting, indexes: list[str], seed: int, ticker: Ticker, *, with_child: bool = True) -> dict[str, Any]:
    """Run all checks. A check that raises has failed, with the error as its note.

    Args:
        with_child: include the check that starts a process and kills it.
    """
    names = list(dict.fromkeys(["dense", "window", *indexes, "oracle"]))
    index = indexes[0]
    ticker.start(7 + len(names))
    checks: list[Check] = []

    def take(name: str, work: Callable[[], Iterator[Check]]) -> None:
        ticker.advance(name)
        gc.collect()  # models and stores are in cycles: none is there beside the next
        try:
            checks.extend(work())
        except Exception as error:  # whatever it was, the other checks still tell something
            checks.append(Check(name, None, 0, f"{type(error).__name__}: {error}"))

    take("attention kernels", lambda: kernels(seed, setting.torch_device))
    with scratch_folder("eval") as folder:
        _with_one_model(setting, names, index, seed, folder, take, with_child=with_child)
        take("transformers", lambda: _against_transformers(setting, seed, folder))
    return {"checks": [check.as_dict() for check in checks]}


def _with_one_model(
    setting: Setting, names: list[str], index: str, seed: int, folder: Path, take: Take, *, with_child: bool
) -> None:
    """Check what needs one model in memory, under several stores. The model is gone when this returns."""
    model, tokens, expected = _in_memory(setting, names, index, seed, folder, take)
    take("tiers", lambda: _tiers(setting, model, index, tokens, expected, folder))
    if with_child:
        take("resume", lambda: _resume(setting, model, index, tokens, expected, folder))


def _in_memory(
    setting: Setting, names: list[str], index: str, seed: int, folder: Path, take: Take
) -> tuple[Model, np.ndarray, Expected]:
    """Check what one runtime over memory alone does. Returns the model, the tokens and their logits for the checks of
    other runtimes; this one's memory is free again then."""
    with setting.load(path=folder, disk_gb=0) as runtime:
        tokens = _tokens(runtime, seed)
        plain = Once(lambda: _plain(runtime, tokens))
        plain_logits = Once(lambda: _plain_logits(plain(), tokens))
        take("everything read", lambda: _everything(runtime, index, tokens, plain_logits))
        for name in names:
            take(f"{name}: a part read", partial(_part, runtime, name, tokens, plain))
        expected = Once(lambda: _logits(_engine(runtime, index), tokens))
        take("pieces", lambda: _pieces(runtime, tokens))
        take("threads", lambda: _threads(runtime, index, tokens, expected))
        return runtime.model, tokens, expected


def _tokens(runtime: Runtime, seed: int) -> np.ndarray:
    """Token ids uint32 `[_PROMPT + _STEPS]`."""
    size = runtime.model.config.vocab_size
    return np.random.default_rng(seed).integers(0, size, _PROMPT + _STEPS).astype(np.uint32)


def _engine(runtime: Runtime, index: str, budget: int = _BUDGET) -> Engine:
    return runtime.reading(Variant(index, budget).config(runtime.config))


def _logits(engine: Engine, tokens: np.ndarray) -> Tensor:
    """Prefill the prompt, then decode the rest token by token: `[1 + _STEPS, vocabulary]`."""
    sequence = engine.new_sequence()
    try:
        first = engine.prefill(sequence, tokens[:_PROMPT]).logits
        assert first is not None
        return torch.stack([first, *(engine.decode([sequence], [t])[0] for t in tokens[_PROMPT:].tolist())])
    finally:
        sequence.close()


def _differ(found: Tensor, expected: Tensor) -> int:
    """The number of rows whose likeliest token is another, where the first two are further apart than rounding."""
    top = expected.topk(2, -1)
    clear = top.values[:, 0] - top.values[:, 1] > LOGITS * expected.abs().max()
    return int(((found.argmax(-1) != top.indices[:, 0]) & clear).sum())


# Against others


def _against_transformers(setting: Setting, seed: int, folder: Path) -> Iterator[Check]:
    """Check 64 greedy tokens with everything read, and the logits they were chosen from."""
    fed, ours, directory = _greedy(setting, seed, folder)
    gc.collect()
    theirs = _their_logits(fed, directory, setting.torch_device)
    yield Check("dense logits = transformers", relative_error(ours, theirs), LOGITS)
    yield Check(f"{_GREEDY} greedy tokens = transformers: that differ", _differ(ours, theirs), 0)


def _greedy(setting: Setting, seed: int, folder: Path) -> tuple[Tensor, Tensor, Path]:
    """Token ids `[1, length + _GREEDY]` of a prompt and of the likeliest that follow, the logits of those and of one
    more, and the model's directory. The context has more than one block of keys, so that decode merges partial results,
    too. The model is gone when this returns: transformers' own is as large."""
    with setting.load(path=folder, disk_gb=0) as runtime:
        engine = _engine(runtime, "dense")
        sequence = engine.new_sequence()
        length = min(KEY_BLOCK + 150, runtime.model.max_positions - _GREEDY)
        logits = engine.prefill(sequence, np.resize(_tokens(runtime, seed), length)).logits
        assert logits is not None
        rows = [logits]
        for _ in range(_GREEDY):
            rows.append(engine.decode([sequence], [int(rows[-1].argmax())])[0])
        fed = torch.from_numpy(sequence.tokens.astype(np.int64)).unsqueeze(0)
        sequence.close()
        return fed, torch.stack(rows), Path(runtime.model.hf.config.name_or_path)


def _their_logits(fed: Tensor, directory: Path, device: torch.device) -> Tensor:
    """transformers' logits `[_GREEDY + 1, vocabulary]` after each of the last tokens of `fed`, on `device`."""
    from transformers import AutoModelForCausalLM

    with readable_path(directory) as path:
        reference = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, local_files_only=True).to(device)
    with torch.inference_mode():
        logits: Tensor = reference.eval()(fed.to(device), logits_to_keep=_GREEDY + 1).logits[0].float()
        return logits


def _plain(runtime: Runtime, tokens: np.ndarray) -> PlainModel:
    """A plain model that has read the prompt."""
    plain = PlainModel(runtime.model)
    plain.read(tokens[:_PROMPT])
    return plain


def _plain_logits(plain: PlainModel, tokens: np.ndarray) -> Tensor:
    """Logits after each of the tokens that follow the prompt `[_STEPS, vocabulary]`, with everything read."""
    plain = plain.copy()
    return torch.stack([plain.read(tokens[i : i + 1]) for i in range(_PROMPT, len(tokens))])


def _everything(runtime: Runtime, index: str, tokens: np.ndarray, plain: Expected) -> Iterator[Check]:
    """Check that with the budget beyond the context an index is not asked."""
    found = _logits(_engine(runtime, index, 2 * len(tokens)), tokens)
    yield Check(f"{index}, everything read = plain tensors", relative_error(found[1:], plain()), LOGITS)


def _part(runtime: Runtime, index: str, tokens: np.ndarray, prefilled: Callable[[], PlainModel]) -> Iterator[Check]:
    """Check sparse steps against plain tensors at the same positions, and those positions against index states made
    anew from plain keys."""
    engine, plain = _engine(runtime, index), prefilled().copy()
    sequence = engine.new_sequence()
    engine.prefill(sequence, tokens[:_PROMPT], want_logits=False, reuse=False)
    twin = engine.fork(sequence)
    watcher = _Watcher(engine, plain)
    watcher.attach(sequence)
    worst = 0.0
    found = []
    for token in tokens[_PROMPT:].tolist():
        found.append(engine.decode([sequence], [token])[0])
        expected = plain.read(np.array([token]), watcher.positions)
        worst = max(worst, relative_error(found[-1], expected))
        watcher.compare()
    if watcher.reads_exactly:
        yield Check(f"{index}, a part read = plain tensors", worst, LOGITS)
    yield Check(f"{index}, choices that a new index makes otherwise", watcher.share_other, NEAR_TIES)
    yield Check(f"{index}, steps without sinks or window, or over budget", watcher.broken, 0)
    sequence.close()
    at_once = engine.decode_known(twin, tokens[_PROMPT:])
    twin.close()
    yield Check(f"{index}, known tokens at once = one by one", relative_error(at_once, torch.stack(found)), 10 * LOGITS)


class _Watcher:
    """Notes which positions each layer read that an index chooses for, and checks them against a state made anew."""

    def __init__(self, engine: Engine, plain: PlainModel) -> None:
        self.engine, self.plain = engine, plain
        self.positions: dict[int, Tensor] = {}
        self.broken = 0
        self._steps: dict[int, Step] = {}
        self._layers: dict[int, PagedLayer] = {}
        self._sealed = 0
        self._chosen = self._other = 0

    @property
    def reads_exactly(self) -> bool:
        return next(iter(self.engine.indexes.values())).reads_exactly

    @property
    def share_other(self) -> float:
        return self._other / max(1, self._chosen)

    def attach(self, sequence: Sequence) -> None:
        for layer in paged_layers(sequence.layers):
            layer.watch = self._see

    def _see(self, layer: PagedLayer, step: Step) -> None:
        self._steps[layer.layer], self._layers[layer.layer], self._sealed = step, layer, layer.sealed
        length = layer.sealed + layer.tail_len
        tail = torch.arange(layer.sealed, length).expand(step.query.shape[0], -1)
        ids = np.empty((len(tail), 0), dtype=np.int64) if step.ids is None else step.ids
        units = torch.from_numpy(np.array(ids))
        read = (units.unsqueeze(-1) * step.unit + torch.arange(step.unit)).flatten(1)
        self.positions[layer.layer] = torch.cat([read, tail], 1).to(self.plain.model.device)
        params = layer.index.params
        forced = [*range(min(params.sink, layer.sealed)), *range(max(0, layer.sealed - params.local), layer.sealed)]
        found = set(read[0].tolist())
        for head in read.tolist():
            found &= set(head)
        over = layer.index.name != "dense" and read.shape[1] + layer.tail_len > layer.budget_of(length)
        self.broken += int(over or not found.issuperset(forced))

    def compare(self) -> None:
        """Compare a step. Call it when the plain model has read the token, too."""
        budget_of = self.engine.config.budget_tokens
        for layer, step in self._steps.items():
            budget = budget_of(self.plain.length) - (self.plain.length - self._sealed)
            if step.ids is None or budget >= self._sealed:
                continue
            index = self.engine.indexes[self.plain.model.sources[layer]]
            state = index.copy(self._layers[layer].state)  # with its learned numbers
            index.truncate(state, 0)
            index.append(state, self.plain.keys[layer][:, : self._sealed])
            again = index.select(state, step.query.float() * step.scale, self._sealed, budget).ids.cpu().numpy()
            for ours, new in zip(step.ids, again, strict=True):
                self._chosen += len(new)
                self._other += len(np.setdiff1d(new, ours))


# Against itself


def _pieces(runtime: Runtime, tokens: np.ndarray) -> Iterator[Check]:
    """Check a prompt that arrives in pieces of any size."""
    prompt, engine = tokens[:_IN_PIECES], _engine(runtime, "dense")
    whole: Tensor | None = None
    for size in (len(prompt), *_PIECES):
        sequence = engine.new_sequence()
        for start in range(0, len(prompt), size):
            piece = prompt[start : start + size]
            logits = engine.prefill(sequence, piece, reuse=False).logits
        sequence.close()
        assert logits is not None
        if whole is None:
            whole = logits
        elif size < len(prompt):
            yield Check(f"prefill in pieces of {size} = at once", relative_error(logits, whole), LOGITS)


def _threads(runtime: Runtime, index: str, tokens: np.ndarray, expected: Expected) -> Iterator[Check]:
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1 if before > 1 else 4)
        found = _logits(_engine(runtime, index), tokens)
    finally:
        torch.set_num_threads(before)
    yield Check(f"{index}, other number of threads = same logits", relative_error(found, expected()), 10 * LOGITS)
    yield Check(f"{index}, other number of threads: likeliest tokens that differ", _differ(found, expected()), 0)


def _tiers(
    setting: Setting, model: Model, index: str, tokens: np.ndarray, expected: Expected, folder: Path
) -> Iterator[Check]:
    """Check that memory and disk, and three tiers with little room, equal memory alone bit for bit. A store opened
    again computes only the last rows of its prompt, in other pieces than at first: equal to rounding."""
    with setting.open(model, path=folder / "probe", disk_gb=0) as runtime:
        plan, chunk = runtime.plan, runtime.engine.chunk
    page = plan.layout.page_bytes * plan.num_tiered
    reserved = Workspace.bytes_for(plan.layout, chunk) + plan.held.sequence_bytes
    compute, host = reserved + 20 * page, 24 * page
    tight = {"gpu_gb": compute / 1e9, "host_gb": host / 1e9, "disk_gb": 4.0}
    places: list[tuple[str, str, dict[str, Any]]] = [
        ("memory and disk", "a", {"disk_gb": 4.0}),
        ("three tiers with little room", "b", tight),
        ("the same, opened again", "b", tight),
    ]
    for name, place, caps in places:
        with setting.open(model, path=folder / place, index=index, budget=_BUDGET, **caps) as runtime:
            found = _logits(_engine(runtime, index), tokens)
            disk_reads = runtime.store.counters.disk_reads
            runtime.store.flush()
            runtime.store.check_integrity()
        if "again" in name:
            yield Check(f"{name}: nothing read from disk", float(not disk_reads), 0)
        yield Check(f"{name} = memory only", relative_error(found, expected()), LOGITS if "again" in name else 0)


def _resume(
    setting: Setting, model: Model, index: str, tokens: np.ndarray, expected: Expected, folder: Path
) -> Iterator[Check]:
    """Check that a process saves a session and is killed, and another goes on where it stopped."""
    half = _PROMPT + _STEPS // 2
    kv = {"index": index, "budget": _BUDGET, "path": str(folder / "killed")}
    task = {
        "model": setting.model, "device": setting.device, "kv": kv, "session": "exact",
        "prompt": tokens[:_PROMPT].tolist(), "known": tokens[_PROMPT:half].tolist(),
    }  # fmt: skip
    command = [sys.executable, "-m", f"{__package__}.save_and_wait", json.dumps(task)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        assert child.stderr is not None
        try:
            said = child.stdout.readline().strip()
        finally:  # also where we are ended: it waits for nothing else
            child.kill()
        if said != SAVED:
            raise RuntimeError(f"the child did not save: {child.stderr.read().strip().splitlines()[-1:]}")
    with setting.open(model, **kv) as runtime:
        engine = _engine(runtime, index)
        sequence, _, computed = session.load(engine, "exact")
        found = engine.decode_known(sequence, tokens[half:])
    yield Check("resumed after a kill: tokens prefilled again", computed, 0)
    yield Check("resumed after a kill = uninterrupted", relative_error(found, expected()[-len(found) :]), 10 * LOGITS)
