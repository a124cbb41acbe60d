"""Real processes killed at random moments while they converse, write behind and save.

What was reported saved is there, complete and to the bit, whatever the moment; what is there is one whole turn;
nothing torn is ever returned. The oracle is a run without a disk in this process.
"""

from __future__ import annotations

import random
import time
from contextlib import closing
from pathlib import Path

import pytest
from conversations import NUM_TURNS, load
from faults import num_faults
from savers import Savers, Tally, check

TRIALS = num_faults(default=4)
TRIALS_PER_STORE = 10


@pytest.mark.parametrize(("kind", "trials"), [("tiny_llama", TRIALS), ("tiny_hybrid", max(2, TRIALS // 4))])
def test_what_was_reported_saved_survives_a_kill_at_any_moment(
    kind: str, trials: int, tmp_path: Path, request: pytest.FixtureRequest, figures: list[str]
) -> None:
    rng, tally, started = random.Random(0), Tally(), time.monotonic()
    model = request.getfixturevalue(kind)
    with closing(Savers(model)) as savers, load(model, None) as oracle:
        begun = time.monotonic()
        assert savers.run(tmp_path / "whole", 10**6) == (NUM_TURNS - 1, False)
        whole_s = time.monotonic() - begun
        for trial in range(trials):
            store = tmp_path / f"kv{trial // TRIALS_PER_STORE}"
            if trial % 2:
                acked, killed = savers.run(store, trial, kill_after_s=rng.uniform(0.15, 0.95) * whole_s)
            else:  # what was just acknowledged is the easiest to lose
                acked, killed = savers.run(store, trial, kill_at_ack=rng.randrange(NUM_TURNS))
            tally.killed += killed
            turn = check(oracle, model, store, trial, acked, tally)
            assert turn <= acked + 1, "a turn that had not begun to be saved"
    figures.append(f"kill -9, {kind}: {trials} trials, {tally}, {time.monotonic() - started:.0f} s")
    assert not tally.lost
    assert not tally.torn
    assert tally.killed > trials // 2
    assert tally.acked > trials // 2
