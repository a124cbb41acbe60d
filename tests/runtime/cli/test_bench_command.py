"""The command `stratakv bench`: options in, JSON and a picture out, one clear line when it cannot be."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from bench_runs import small_probes
from typer.testing import CliRunner, Result

from stratakv.runtime.cli.app import app


@pytest.fixture(autouse=True)
def _small_probes(monkeypatch: pytest.MonkeyPatch) -> None:
    small_probes(monkeypatch)


def bench(*arguments: str) -> Result:
    tiny = ["--shape", "tiny", "--dtype", "float32", "--budget", "112", "--steps", "4", "--turn-tokens", "8"]
    return CliRunner().invoke(app, ["bench", *tiny, *arguments])


def test_lists_are_crossed_and_written(tmp_path: Path) -> None:
    out, picture = tmp_path / "found.json", tmp_path / "found.svg"
    ran = bench(
        "--contexts", "64,128", "--index", "bounds,window", "--gpu-kv-gb", "0.001,0.002", "--baselines", "dense",
        "--out", str(out), "--plot", str(picture),
    )  # fmt: skip
    assert ran.exit_code == 0, ran.output
    assert json.loads(ran.stdout) == json.loads(out.read_text())
    names = [one["name"] for one in json.loads(ran.stdout)["rows"][1]["contestants"]]
    assert names == [
        "stratakv bounds (gpu 0.001 GB)", "stratakv bounds (gpu 0.002 GB)",
        "stratakv window (gpu 0.001 GB)", "stratakv window (gpu 0.002 GB)", "transformers dense float32",
    ]  # fmt: skip
    drawn = picture.read_text()
    assert drawn.startswith("<?xml")
    assert "logits equal transformers' within" in ran.stderr
    assert "against transformers dense float32" in ran.stderr


def test_one_step_is_drawn_and_written_without_a_spread(tmp_path: Path) -> None:
    picture = tmp_path / "one.svg"
    ran = bench("--steps", "1", "--contexts", "64", "--baselines", "dense", "--plot", str(picture))
    assert ran.exit_code == 0, ran.output
    (ours, _), (verdict,) = json.loads(ran.stdout)["rows"][0]["contestants"], json.loads(ran.stdout)["crossovers"]
    assert ours["first_turn"]["tpot_ms_p90"] is None
    assert verdict["undecided"] == [64]
    assert "undecided, one step is too few" in ran.stderr
    assert picture.read_text().startswith("<?xml")


def test_a_breakdown_is_printed_and_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    picture, shared = tmp_path / "steps.svg", ["--contexts", "64", "--baselines", "none", "--breakdown"]
    monkeypatch.setenv("STRATAKV_COMPILED", "1")
    ran = bench(*shared, "--plot", str(picture))
    assert ran.exit_code == 0, ran.output
    (one,) = json.loads(ran.stdout)["rows"][0]["contestants"]
    names = [part["operation"] for part in one["first_turn"]["breakdown"]["parts"]]
    assert all(f"\n    {name} " in ran.stderr for name in [*names, "total"])
    assert all(f"<!-- {name} -->" in picture.read_text() for name in names), "each is in the legend"
    monkeypatch.setenv("STRATAKV_COMPILED", "0")
    ran = bench(*shared, "--plot", str(picture))
    assert "PyTorch computes these steps" in ran.stderr
    assert "<!-- not told apart -->" in picture.read_text()


def test_prefetching_beside_none_over_slow_links() -> None:
    ran = bench(
        "--layers", "5", "--contexts", "512", "--index", "spectral", "--gpu-kv-gb", "0.0008", "--link-gbps", "0.01",
        "--disk-gbps", "0.1", "--prefetch", "on,off", "--baselines", "none",
    )  # fmt: skip
    assert ran.exit_code == 0, ran.output
    with_it, without = json.loads(ran.stdout)["rows"][0]["contestants"]
    assert (with_it["prefetch"], without["prefetch"]) == ("on", "off")
    assert with_it["name"] == "stratakv spectral (gpu 0.0008 GB, prefetch)"
    assert without["name"] == "stratakv spectral (gpu 0.0008 GB, no prefetch)"
    assert with_it["first_turn"]["counters"]["prefetches"] > 0
    assert without["first_turn"]["counters"]["prefetches"] == 0
    assert without["first_turn"]["bytes_per_step"]["host_to_gpu_bytes"] > 0
    assert without["first_turn"]["hidden_share"] <= 0.01, "what nobody fetches ahead is waited for"
    assert "of transfer time hidden" in ran.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--contexts", "1k"], "--contexts is a comma-separated list of whole numbers, not '1k'"),
        (["--prefetch", "maybe"], "prefetch is auto, on or off, not 'maybe'"),
        (["--batch", ""], "--batch is a comma-separated list of whole numbers, not ''"),
        (["--gpu-kv-gb", "big"], "a cap is a comma-separated list of numbers of GB, not 'big'"),
        (["--index", "bounds,qest"], "not 'qest'"),
        (["--baselines", "vllm"], "not vllm"),
        (["--shape", "llama-9"], "shape is one of tiny, smollm2-135m"),
        (["--out", "/nowhere/found.json"], "its folder does not exist"),
        (["--plot", "found.gif"], "a picture's name ends in .png, .svg, .pdf"),
    ],
)
def test_what_cannot_be_is_one_line(arguments: list[str], said: str) -> None:
    ran = bench(*arguments)
    assert ran.exit_code == 2
    assert said in ran.stderr.splitlines()[-1]
    assert not ran.stdout
