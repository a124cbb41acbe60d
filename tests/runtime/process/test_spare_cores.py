"""How many threads compute while others use the machine; that their number changes no bit of what layers compute."""

from __future__ import annotations

import random
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_models import FAMILIES, FORMS, save_tiny_model

from stratakv.runtime import KVConfig, Runtime
from stratakv.runtime.process import spare_cores
from stratakv.runtime.process.spare_cores import STALE_S, WINDOW_S, FittingThreads, SpareCores


@dataclass
class Machine:
    """Its clock goes when it is told to, and processes use as much of its cores as they are told to."""

    cores: int
    now: float = 100.0
    others: float = 5_000.0
    ours: float = 7.0
    threads: int = 0
    spare: SpareCores = field(init=False)

    def __post_init__(self) -> None:
        self.spare = SpareCores(self.cores, used=lambda: (self.others, self.ours), clock=lambda: self.now)
        self.threads = self.cores

    def run(self, others: float, ours: float = 0.0, seconds: float = WINDOW_S) -> int:
        """The count after others and we have used so many cores for so long."""
        self.now += seconds
        self.others += seconds * others
        self.ours += seconds * ours
        self.threads = self.spare.count(max(1, self.threads))
        return self.threads

    def share(self, loops: int, long: bool = False) -> int:
        """The count after our threads have had an equal share beside so many that never wait."""
        threads = self.threads or (self.cores if long else 1)
        self.threads = threads
        each = min(1.0, self.cores / (threads + loops))
        return self.run(loops * each, threads * each)


@pytest.mark.parametrize(
    ("cores", "others", "expected"),
    [(2, 0.0, 2), (2, 0.3, 2), (2, 0.7, 1), (2, 1.0, 1), (2, 2.0, 0), (8, 1.1, 7), (8, 3.7, 4)],
)
def test_a_core_that_others_use_is_given_up(cores: int, others: float, expected: int) -> None:
    machine = Machine(cores)
    assert machine.spare.count(cores) == cores
    assert machine.run(others) == expected
    assert machine.run(0.0) == cores


@pytest.mark.parametrize("long", [False, True])
@pytest.mark.parametrize("cores", [2, 3, 8])
@pytest.mark.parametrize("loops", [0, 1, 2, 3, 12])
def test_it_settles_at_the_cores_that_others_do_not_want(cores: int, loops: int, long: bool) -> None:
    """Whoever never waits wants a core, also one who gets only part of it beside our threads."""
    machine = Machine(cores)
    counts = [machine.share(loops, long) for _ in range(6)]
    assert counts[2:] == [max(0, cores - loops)] * 4


def test_in_between_the_count_stays_as_it_is() -> None:
    machine = Machine(2)
    assert machine.run(0.4) == 2
    assert machine.run(0.6) == 1
    assert machine.run(0.4) == 1
    assert machine.run(0.3) == 2


def test_it_looks_once_in_a_window() -> None:
    machine = Machine(2)
    assert machine.run(1.0, seconds=0.4 * WINDOW_S) == 2
    assert machine.run(1.0, seconds=0.7 * WINDOW_S) == 1
    assert machine.run(0.0, seconds=0.4 * WINDOW_S) == 1


def test_what_others_did_while_we_did_nothing_says_nothing_of_now() -> None:
    machine = Machine(2)
    assert machine.run(2.0, seconds=10 * STALE_S) == 2
    assert machine.run(1.0) == 1
    assert machine.run(0.0, seconds=10 * STALE_S) == 1
    assert machine.run(0.0) == 2


def test_this_process_is_not_one_of_the_others() -> None:
    """Others had at most what is left of every core's time when the time we had is taken off."""
    begun, (others, ours) = time.monotonic(), spare_cores.used_times()
    while time.process_time() < ours + 0.3:
        pass
    others, ours = (new - old for new, old in zip(spare_cores.used_times(), (others, ours), strict=True))
    cores, passed = len(spare_cores.processors()), time.monotonic() - begun
    assert ours >= 0.3
    assert -0.1 <= others <= cores * passed - ours + 0.1


class Given(SpareCores):
    """A count that a test gives."""

    def __init__(self, given: int) -> None:
        self.given = given

    def count(self, threads: int) -> int:
        return self.given


def test_a_step_has_as_many_threads_as_are_spare_and_at_least_one() -> None:
    torch.set_num_threads(4)
    given = {}
    for count in (0, 1, 3, 4, 9):
        with FittingThreads(Given(count)).lent() as threads:
            given[count] = threads
    assert given == {0: 1, 1: 1, 3: 3, 4: 4, 9: 4}


def test_openmp_sleeps_meanwhile_and_has_all_its_threads_afterwards() -> None:
    torch.set_num_threads(4)
    with FittingThreads(Given(2)).lent():
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == 4
    with pytest.raises(KeyError), FittingThreads(Given(2)).lent():
        raise KeyError
    assert torch.get_num_threads() == 4


def test_other_threads_of_the_process_keep_theirs() -> None:
    torch.set_num_threads(4)
    with FittingThreads(Given(1)).lent(), ThreadPoolExecutor(1) as pool:
        assert pool.submit(torch.get_num_threads).result() == 4


def test_a_user_who_chose_the_count_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spare_cores, "num_threads", lambda: 2)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    monkeypatch.setattr(spare_cores, "user_chose_count", lambda: False)
    assert FittingThreads.on(torch.device("cpu"))._spare is not None
    assert FittingThreads.on(torch.device("meta"))._spare is None
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)  # by torch.set_num_threads
    assert FittingThreads.on(torch.device("cpu"))._spare is None
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    monkeypatch.setattr(spare_cores, "user_chose_count", lambda: True)  # by OMP_NUM_THREADS
    assert FittingThreads.on(torch.device("cpu"))._spare is None


class Drawn(SpareCores):
    """Another count whenever it is asked."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)

    def count(self, threads: int) -> int:
        return self._random.randint(1, 4)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("family", FORMS)
def test_any_number_of_threads_computes_the_same_bits(family: str, dtype: str, tmp_path: Path) -> None:
    """Layers wide enough to be computed by several threads: a prompt in spans, then steps of one and two sequences.
    Only what gives the same bits may follow what is spare. Prefill does not, on some processors."""
    own_head = {"head_dim": 64} if "head_dim" in FAMILIES[family][1] else {}
    wide = {"hidden_size": 384, "intermediate_size": 1024, **own_head}
    folder = save_tiny_model(tmp_path / "model", family, **wide)
    tokens = np.arange(180, dtype=np.uint32) * 7 % 250
    torch.set_num_threads(4)

    def logits(threads: FittingThreads) -> list[torch.Tensor]:
        kv = KVConfig(path=tmp_path / "kv", disk_gb=0, index="bounds", budget=128)
        with Runtime.load(folder, device="cpu", dtype=dtype, kv=kv) as runtime:
            runtime.engine.threads = threads
            one, two = runtime.engine.new_sequence(), runtime.engine.new_sequence()
            found = [runtime.engine.prefill(one, tokens).logits, runtime.engine.prefill(two, tokens[:150]).logits]
            for token in range(4):
                found.append(runtime.engine.decode([one], [token]))
                found.append(runtime.engine.decode([one, two], [token, token + 1]))
            return [one for one in found if one is not None]

    expected = logits(FittingThreads(None))
    for one, other in zip(logits(FittingThreads(Drawn(1))), expected, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)


class Unasked(SpareCores):
    """Fails whoever asks."""

    def __init__(self) -> None:
        pass

    def count(self, threads: int) -> int:
        raise AssertionError("asked how many cores are spare")


def test_a_prompt_is_read_with_all_threads_whatever_is_spare(tiny_llama: Path, tmp_path: Path) -> None:
    torch.set_num_threads(2)
    with Runtime.load(tiny_llama, device="cpu", kv=KVConfig(path=tmp_path / "kv", disk_gb=0)) as runtime:
        runtime.engine.threads = FittingThreads(Unasked())
        sequence, tokens = runtime.engine.new_sequence(), np.arange(150, dtype=np.uint32)
        assert runtime.engine.prefill(sequence, tokens).num_computed == 150
        with pytest.raises(AssertionError, match="spare"):
            runtime.engine.decode([sequence], [1])
