"""`stratakv methods`: a list that fits the terminal, one method in full, and data."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from stratakv.runtime.cli.app import app
from stratakv.runtime.cli.methods.method import KINDS


def printed(*arguments: str) -> str:
    found = CliRunner().invoke(app, ["methods", *arguments])
    assert found.exit_code == 0, found.stderr
    return found.stdout


@pytest.mark.parametrize("width", [80, 200])
def test_all_methods_fit_the_terminal(width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    lines = printed().splitlines()
    assert max(map(len, lines)) <= min(width, 140)
    for kind in KINDS:
        assert [len([line for line in lines if line.startswith(f"  {name} ")]) for name in kind.names] == [1] * len(
            kind.names
        )
    (snapkv,) = (line for line in lines if line.startswith("  snapkv "))
    assert snapkv.split()[1:3] == ["4", "2404.14469"]
    assert snapkv.index("2404") == next(line.index("arXiv") for line in lines if "arXiv" in line)
    assert "[window=32 pool=5]" in " ".join(" ".join(lines).split())


def test_one_method_in_full() -> None:
    found = " ".join(printed("spectral").split())
    assert found.startswith(
        "spectral, one of the indexes (retrieval/indexes/spectral.py) A few bytes of code for each token"
    )
    assert "Idea keys that are neighbours in the text" in found
    assert (
        "Bytes 10 of each stored token, in memory, and 204,805 for each sequence; per KV head of 128 channels" in found
    )
    assert "Spec --index spectral:parts=6:part_width=8:segment=64 parts=6: Bytes of code per token." in found


def test_data_have_the_same() -> None:
    found = json.loads(printed("--json"))
    assert {kind.plural: [one["name"] for one in found[kind.plural]] for kind in KINDS} == {
        kind.plural: list(kind.names) for kind in KINDS
    }
    (one,) = json.loads(printed("snapkv", "--json"))["placements"]
    assert one["settings"] == {"window": 32, "pool": 5}
    assert (one["token_bytes"], one["paper"]) == (4, "SnapKV, arXiv 2404.14469")
    assert one["sections"].keys() >= {"Idea", "State", "Cost", "Differs"}


def test_an_unknown_method_is_one_line() -> None:
    found = CliRunner().invoke(app, ["methods", "nope"])
    assert found.exit_code == 2
    assert found.stderr.startswith("stratakv: no method is called 'nope'; indexes: a2ats, ")
    assert found.stderr.count("\n") == 1
