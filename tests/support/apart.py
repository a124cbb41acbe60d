"""Tests that fork, in a small process beside the one that runs the tests.

A worker that has had real models may hold gigabytes, and a system that is short of memory refuses to fork it (ENOMEM).
So `os.fork` raises in the process that runs the tests. Items marked `forks` become items of the same name there, which
have a second pytest, with nothing but files of such tests, run them and say what came of it. It begins with the first,
and ends when a test follows that does without it: some hundred megabytes are free again then.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Generator
from pathlib import Path
from typing import Any, NoReturn

import pytest


class Apart:
    """The plugin; small processes do without it."""

    def pytest_configure(self) -> None:
        os.fork = _refused

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        files = sorted({item.path for item in items if item.get_closest_marker("forks")})
        for i, item in enumerate(items):
            if item.get_closest_marker("forks"):
                items[i] = ApartItem.from_parent(item.parent, name=item.name, item=item, files=files)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item, nextitem: pytest.Item | None) -> Generator[None, Any, Any]:
        done = yield
        if isinstance(item, ApartItem) and not isinstance(nextitem, ApartItem):
            _end()
        return done


def _refused() -> NoReturn:
    raise RuntimeError("this process may have grown too large to be forked; mark the test `forks`")


class SmallProcess:
    """A pytest for some files. It runs the items that it is asked for."""

    def __init__(self, files: list[Path], folder: Path, options: list[str]) -> None:
        asked, ask = os.pipe()
        hear, said = os.pipe()
        command = [sys.executable, __file__, str(asked), str(said), *map(str, files), f"--basetemp={folder}", *options]
        self._process = subprocess.Popen(command, pass_fds=(asked, said), stdout=subprocess.DEVNULL)
        os.close(asked)
        os.close(said)
        self._ask, self._hear = os.fdopen(ask, "w"), os.fdopen(hear)

    def run(self, nodeid: str) -> list[dict[str, Any]]:
        """Reports of the item's phases, as pytest serializes them. None of them if the process has ended."""
        print(nodeid, file=self._ask, flush=True)
        reports: list[dict[str, Any]] = json.loads(self._hear.readline() or "[]")
        return reports

    def end(self) -> int:
        """Its exit status."""
        self._ask.close()
        self._hear.close()
        return self._process.wait()


_PROCESSES: list[SmallProcess] = []
"""The one that runs, if any."""


class ApartItem(pytest.Item):
    """Has `item` run in the small process for `files`. That one looks at marks and fixtures, too."""

    def __init__(self, item: pytest.Item, files: list[Path], **keywords: Any) -> None:
        super().__init__(**keywords)
        self._files, self.reportinfo = files, item.reportinfo

    def runtest(self) -> None:
        if not _PROCESSES:
            folder = self.config._tmp_path_factory.mktemp("apart")
            settings = self.config.getoption("override_ini") or ()
            _PROCESSES.append(SmallProcess(self._files, folder, [f"--override-ini={each}" for each in settings]))
            self.session.addfinalizer(_end)
        reports = _PROCESSES[0].run(self.nodeid)
        if not reports:
            pytest.fail(f"the small process has ended with status {_end()}", pytrace=False)
        for data in reports:
            self._take(self.config.hook.pytest_report_from_serializable(config=self.config, data=data))

    def _take(self, report: pytest.TestReport) -> None:
        for title, text in report.sections:
            _, name, phase = title.split(" ")  # such as "Captured stdout call"
            self.add_report_section(phase, name, text)
        self.user_properties = report.user_properties
        if report.skipped:  # a test that skips itself there is skipped here, with its own reason
            pytest.skip(report.longrepr[2].removeprefix("Skipped: "))
        if report.failed:
            pytest.fail(f"in {report.when}:\n{report.longreprtext}", pytrace=False)


def _end() -> int | None:
    return _PROCESSES.pop().end() if _PROCESSES else None


class Served:
    """The small process's side: a plugin that runs what it is asked for."""

    def __init__(self, asked: int, said: int) -> None:
        self._asked, self._said = os.fdopen(asked), os.fdopen(said, "w")
        self._reports: list[dict[str, Any]] = []
        # Neither end is held by what tests start or fork: who waits for the other side would wait for those as well.
        for pipe in (self._asked, self._said):
            os.set_inheritable(pipe.fileno(), False)
            os.register_at_fork(after_in_child=pipe.close)

    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        items, last = {item.nodeid: item for item in session.items}, None
        for line in self._asked:
            item = items[line.rstrip("\n")]
            if item.parent is not last:  # what the files before this one shared
                session._setupstate.teardown_exact(item)
            last = item.parent
            # Pytest tears down what this item does not share with the next, which is asked for later.
            another = next(
                (other for other in session.items if other.parent is item.parent and other is not item), None
            )
            item.ihook.pytest_runtest_protocol(item=item, nextitem=another)
            print(json.dumps(self._reports), file=self._said, flush=True)
            self._reports.clear()
        return True

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        config = self._config
        self._reports.append(config.hook.pytest_report_to_serializable(config=config, report=report))

    def pytest_configure(self, config: pytest.Config) -> None:
        self._config = config


def main(asked: str, said: str, *arguments: str) -> NoReturn:
    without = [part for name in ("apart", "xdist", "terminal", "cacheprovider") for part in ("-p", f"no:{name}")]
    status = pytest.main([*without, *arguments], plugins=[Served(int(asked), int(said))])
    os._exit(status)  # not by way of libraries that list what they leak


if __name__ == "__main__":
    main(*sys.argv[1:])
