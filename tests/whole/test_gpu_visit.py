"""A visit to a GPU, rehearsed with pieces that need none: each piece's result is there whatever the others do."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest
from places import ROOT


@pytest.fixture
def gpu_visit() -> ModuleType:
    spec = importlib.util.spec_from_file_location("gpu_visit", ROOT / "examples" / "bench" / "gpu_visit.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def python(code: str) -> list[str]:
    return [sys.executable, "-c", code]


TURN = {"tpot_ms_p50": 12.34, "tokens_per_s": 81.0, "ttft_s": 0.5}
RESULT = {
    "rows": [
        {
            "contestants": [{"name": "stratakv spectral", "first_turn": TURN, "second_turn": TURN}],
            "left_out": {"transformers": "out of device memory"},
        }
    ]
}


def test_a_piece_that_fails_or_hangs_costs_the_others_nothing(gpu_visit: ModuleType, tmp_path: Path) -> None:
    piece = gpu_visit.Piece
    wrote = f"open({str(tmp_path / 'good.json')!r}, 'w').write({json.dumps(RESULT)!r}); print('fine')"
    chosen = [
        piece("fails", python("raise SystemExit('no device')"), 20),
        piece("hangs", python("import subprocess; subprocess.run(['sleep', '600'])"), 1),
        piece("good", python(wrote), 20),
        piece("late", python("print('never')"), 1000),
    ]
    done = gpu_visit.visit(chosen, tmp_path, 100)
    assert [one["state"].split(":")[0] for one in done] == ["failed with 1", "over its 1 s", "done", "left out"]
    assert done[0]["printed"].strip() == "no device"
    assert done[2]["result"] == RESULT
    assert not (tmp_path / "good.json").exists(), "what comes back is a few files"
    assert json.loads((tmp_path / "visit.json").read_text()) == {"pieces": done}
    lines = list(gpu_visit.summary(done))
    assert "| good | stratakv spectral | 12.3 | 81.0 | 0.50 |" in "\n".join(lines)
    assert any("out of device memory" in line for line in lines)
    assert any(line.startswith("| fails | failed with 1: no device") for line in lines)


def test_all_pieces_fit_a_visit_and_can_be_picked(
    gpu_visit: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seen: list[str] = []
    monkeypatch.setattr(
        gpu_visit, "_run", lambda piece, out: seen.append(piece.name) or {"name": piece.name, "state": "done"}
    )
    monkeypatch.setattr(sys, "argv", ["gpu_visit.py", "--out", str(tmp_path), "--only", "1m,tests"])
    gpu_visit.main()
    assert seen == ["tests", "1m"], "in the order of what they tell"
    monkeypatch.setattr(sys, "argv", ["gpu_visit.py", "--out", str(tmp_path), "--only", "2m"])
    with pytest.raises(SystemExit):
        gpu_visit.main()
    assert "no piece 2m; known: tests, 128k" in capsys.readouterr().err
