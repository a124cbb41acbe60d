"""`stratakv plan` tells what each kind of layer takes, and what cards hold that are not there."""

from __future__ import annotations

import pytest
from typer.testing import CliRunner

from stratakv.runtime.cli.app import app


@pytest.mark.parametrize(
    ("shape", "lines"),
    [
        ("qwen3.8-27b", [
            "65536 bytes of KV per token; 131072 tokens need 8.59 GB of host memory, or up to 10.3 GB of disk",
            "48 recurrent layers: a state of 0.157 GB, up to 3 at a time, and those that a conversation can go back to",
            "on disk 0.157 GB every 12032 tokens, for other conversations that begin alike",
            "   16 GB  bf16  53.8 GB       nothing: the weights alone are larger",
            "   24 GB  int4  20.3 GB       32313 tokens",
        ]),
        ("llama-3.1-8b", [
            "   24 GB  bf16  16.1 GB       43898 tokens",
            "   24 GB  int4  6.46 GB       102471 tokens",
        ]),
        ("gemma4-31b", [
            "81920 bytes of KV per token; 131072 tokens need 10.7 GB of host memory, or up to 12.9 GB of disk",
            "50 sliding layers: windows of 1.7 GB",
            "   24 GB  bf16  61.4 GB       nothing: the weights alone are larger",
        ]),
        ("gemma4-e2b", [
            "6144 bytes of KV per token; 131072 tokens need 0.805 GB of host memory, or up to 0.966 GB of disk",
            "12 sliding layers: windows of 0.013 GB",
            "20 layers attend to what others keep",
        ]),
    ],
)  # fmt: skip
def test_a_shape_needs_no_weights(shape: str, lines: list[str]) -> None:
    found = CliRunner().invoke(app, ["plan", "131072", "--shape", shape])
    assert found.exit_code == 0, found.stderr
    assert set(lines) <= set(found.stdout.splitlines())
    assert "bf16 unless --weights int8 or int4 is given" in found.stdout
    assert "experts" not in found.stdout


def test_all_experts_are_said_to_be_on_the_card(monkeypatch: pytest.MonkeyPatch) -> None:
    from dataclasses import replace

    from stratakv.runtime.bench.shapes import SHAPES

    monkeypatch.setitem(SHAPES, "small", replace(SHAPES["qwen3-30b-a3b"], layers=1, experts=(8, 2, 512)))
    found = CliRunner().invoke(app, ["plan", "1000", "--shape", "small"])
    assert "all experts are on the card, 0.0252 billion weights" in found.stdout


def test_an_unknown_shape_is_refused_with_those_known() -> None:
    found = CliRunner().invoke(app, ["plan", "1000", "--shape", "llama-9"])
    assert found.exit_code == 2
    assert "shape is one of tiny, smollm2-135m" in found.stderr
