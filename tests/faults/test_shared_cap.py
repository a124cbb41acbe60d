"""Models, dtypes and codecs come and go in one store, on a disk that others fill and empty: what holds in any history.

At every start the cap is the default one, from what the disk has free then. What was reported saved is opened, whole,
and goes on; no start leaves the folder above its cap, as it is seen from outside; and a disk that is full costs the
saving, never the reading.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections import Counter
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from faults import num_faults
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from places import RECALL
from recall import NAMES, make_context
from small_disk import SmallDisk, small_disk, taken

from stratakv.runtime import Chat, KVConfig, Runtime, SessionError

DISK_BYTES = 3 << 20
KINDS: list[dict[str, Any]] = [
    {"dtype": "float32"}, {"dtype": "bfloat16"}, {"dtype": "float32", "codec": "int8"},
    {"dtype": "bfloat16", "page_size": 32},
]  # fmt: skip
counts = Counter[str]()


@dataclass(frozen=True)
class Start:
    """One run of the program: with which model and settings, how full others have made the disk, and what is done."""

    model: int
    kind: int
    is_updated: bool
    fill: float
    """What others have of the disk: from 0 to 1, and beyond it as much as the store leaves."""
    texts: list[tuple[int, int]]
    """Seed and tokens. After the first of them the conversation is saved."""


starts = st.builds(
    Start,
    model=st.sampled_from([0, 0, 0, 1]),
    kind=st.sampled_from([0, 0, 1, 2, 3]),
    is_updated=st.sampled_from([False] * 6 + [True]),
    fill=st.sampled_from([0.0, 0.2, 0.5, 0.9, 1.0]),
    texts=st.lists(st.tuples(st.integers(0, 5), st.sampled_from([100, 300, 700])), min_size=1, max_size=2),
)


@dataclass
class History:
    """What was done to a store, and what it has promised to keep."""

    folder: Path
    disk: SmallDisk
    saved: dict[tuple[int, int, int], dict[str, int]] = field(default_factory=dict)
    """By model, version and kind: sessions and how many tokens they have."""
    versions: Counter[int] = field(default_factory=Counter)

    def model(self, number: int, *, is_updated: bool) -> Path:
        """An update changes its numbers under the name that it had."""
        path = self.folder / f"model-{number}"
        if not path.exists():
            shutil.copytree(RECALL, path)
        if is_updated:
            self.versions[number] += 1
            about = json.loads((path / "config.json").read_text())
            changed = {**about, "rms_norm_eps": (1 + number + 10 * self.versions[number]) * 1e-7}
            (path / "config.json").write_text(json.dumps(changed))
        return path

    def run(self, start: Start) -> None:
        path = self.model(start.model, is_updated=start.is_updated)
        sessions = self.saved.setdefault((start.model, self.versions[start.model], start.kind), {})
        self.disk.foreign = int(start.fill * (self.disk.size - taken(self.disk.store)))
        kind = dict(KINDS[start.kind])
        kv = KVConfig(
            path=self.disk.store, host_gb=0.05, index="bounds", **{n: v for n, v in kind.items() if n != "dtype"}
        )
        with self.disk.as_full_as_it_is(), ExitStack() as stack:
            runtime = stack.enter_context(Runtime.load(path, dtype=kind["dtype"], kv=kv))
            cap = runtime.plan.store_bytes
            for name, tokens in list(sessions.items()):
                chat = runtime.chat(session=name)
                assert chat.restored == chat.num_tokens == tokens, "a page was lost"
                reply = chat.send("? k2", max_new_tokens=3, ignore_eos=True)
                assert reply.usage.completion_tokens == 3
                counts["gone on"] += 1
                self.save(chat, name, sessions)
                chat.close()
                self.check(cap)
            for number, (seed, tokens) in enumerate(start.texts):
                chat = runtime.chat()
                ids, _ = make_context(np.random.default_rng(seed), tokens, 40)
                chat.read_text(" ".join(NAMES[token] for token in ids))
                assert chat.send("? k3", max_new_tokens=2, ignore_eos=True).usage.completion_tokens == 2
                if number == 0:
                    self.save(chat, f"s{seed}", sessions)
                chat.close()
                self.check(cap)
            runtime.store.check_integrity()
        self.check(cap)

    def save(self, chat: Chat, name: str, sessions: dict[str, int]) -> None:
        try:
            chat.save(name, replace=True)
        except SessionError:
            counts["not saved"] += 1
        else:
            counts["saved"] += 1
            sessions[name] = chat.num_tokens

    def check(self, cap: int) -> None:
        assert taken(self.disk.store) <= cap


@settings(
    max_examples=num_faults(default=3, share=0.5), deadline=None, derandomize=True,
    phases=[Phase.explicit, Phase.generate],  # a history takes seconds: the one that failed is shown as it is
)  # fmt: skip
@given(history=st.lists(starts, min_size=5, max_size=8))
def test_what_was_saved_goes_on_under_any_cap_and_fill(history: list[Start]) -> None:
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setenv("XDG_CACHE_HOME", f"{folder}/cache")
        found = History(Path(folder), small_disk(Path(folder, "kv"), DISK_BYTES, monkeypatch))
        for start in history:
            found.run(start)
        for model, version, kind in list(found.saved):
            if version == found.versions[model]:
                found.run(Start(model, kind, is_updated=False, fill=1.0, texts=[]))


def test_the_histories_were_eventful(figures: list[str]) -> None:
    """Of those before: sessions that were refused as well as some that went on."""
    assert counts["gone on"] > 2
    assert counts["not saved"] > 2
    assert counts["saved"] > 2
    figures.append(f"shared cap: {dict(counts)}")
