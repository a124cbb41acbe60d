"""The process that runs the tests, which may hold large models, is never forked."""

from __future__ import annotations

import os

import pytest
from children import child


def test_the_process_that_runs_the_tests_may_not_be_forked() -> None:
    with pytest.raises(RuntimeError, match="mark the test `forks`"), child(lambda say, wait: None):
        pass


@pytest.mark.forks
def test_what_is_marked_runs_in_a_process_that_may() -> None:
    parent = os.getpid()
    with child(lambda say, wait: say(os.getppid())) as forked:
        assert forked.hear() == parent
        assert forked.join() == 0
