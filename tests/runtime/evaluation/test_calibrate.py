"""`stratakv calibrate`: what it makes, who may use it, and what is said when nobody can."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import faiss
import pytest
import torch
from tiny_models import save_tiny_model
from torch import Tensor
from typer.testing import CliRunner, Result

from stratakv.kernels.codebook_scores import half_norms, nearest_codewords
from stratakv.runtime import KVConfig, Runtime
from stratakv.runtime.cli.app import app
from stratakv.runtime.engine.profile import default_path, load_profile
from stratakv.runtime.evaluation.calibrate import CONTEXT, _captured, _contexts, _learn, calibrate
from stratakv.runtime.layers.tiered import TieredLayer
from stratakv.runtime.model.identity import model_digests
from stratakv.runtime.model.model import Model

TEXT = "".join(f"On day {day} the keeper of the light wrote {day * 37 % 101} words in the log. " for day in range(60))


class Silent:
    """A `Ticker` that counts."""

    def __init__(self) -> None:
        self.total, self.told = 0, list[str]()

    def start(self, total: int) -> None:
        self.total = total

    def advance(self, what: str) -> None:
        self.told.append(what)


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    """Models and codebooks are tiny here: threads would mostly wait for each other."""
    before = torch.get_num_threads(), faiss.omp_get_max_threads()
    torch.set_num_threads(1)
    faiss.omp_set_num_threads(1)
    yield
    torch.set_num_threads(before[0])
    faiss.omp_set_num_threads(before[1])


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A cache directory of our own, with a text in it."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("cache")
        patch.setenv("XDG_CACHE_HOME", str(folder))
        (folder / "text.txt").write_text(TEXT)
        yield folder


def command(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, [*map(str, arguments)])


@pytest.fixture(scope="module")
def made(cache: Path, tiny_llama: Path) -> Result:
    """The command's output; the profile is where the runtime looks for it."""
    text = cache / "text.txt"
    return command(
        "calibrate", tiny_llama, "--text", text, "--codewords", "32", "--tokens", "1024", "--dtype", "float32"
    )


def load(model: Path, store: Path, **kv: Any) -> Runtime:
    return Runtime.load(model, dtype="float32", kv=KVConfig(path=store, index="a2ats", budget=144, local=32, **kv))


def one_line(result: Result) -> str:
    assert result.exit_code == 2, (result.stdout, result.stderr, result.exception)
    assert result.stdout == ""
    assert result.stderr.count("\n") == 1
    return result.stderr


def last_line(result: Result) -> str:
    """Of a command that had begun to say how it goes."""
    assert result.exit_code == 2, (result.stdout, result.stderr, result.exception)
    return result.stderr.splitlines()[-1]


def test_the_command_makes_a_profile(made: Result, tiny_llama: Path) -> None:
    assert made.exit_code == 0, (made.stderr, made.exception)
    path = default_path(tiny_llama)
    first, _, *rows = made.stdout.splitlines()
    size = path.stat().st_size
    assert first.startswith(f"{path}: {size / 1e6:.1f} MB, 32 codewords per KV head of 3 layers from 1024 tokens")
    assert [row.split()[1] for row in rows] == ["0", "1", "2"]
    assert all(0 < float(error) < 0.5 for row in rows for error in row.split()[2:]), "on text not learned from"
    profile, digest = load_profile(path)
    assert profile.model == model_digests(tiny_llama)[0]
    assert profile.notes["tokens"] == 1024
    assert digest == profile.digest().hex()
    for parts in profile.layers.values():
        shapes = {name: (list(tensor.shape), tensor.dtype) for name, tensor in parts.items()}
        assert shapes == {
            "codewords": ([2, 32, 8], torch.float16), "center": ([2, 1, 8], torch.float32),
            "metric": ([2, 8, 8], torch.float32), "distance": ([], torch.int64),
            **{f"kvquant.{bits}": ([2, 2**bits], torch.float16) for bits in (2, 3, 4)},
        }  # fmt: skip


def test_a_conversation_reads_through_it(made: Result, tiny_llama: Path, tmp_path: Path) -> None:
    with load(tiny_llama, tmp_path / "kv") as runtime:
        chat = runtime.chat()
        chat.read_text(TEXT[:1500])
        reply = chat.send("What did the keeper write?", max_new_tokens=24, ignore_eos=True)
        assert len(reply.tokens) == 24
        assert runtime.stats()["tokens_read"] == 144
        layer = runtime.engine.indexes[0].layer
        assert layer.profile is not None


def test_a_codec_writes_pages_by_it(made: Result, cache: Path, tiny_llama: Path, tmp_path: Path) -> None:
    """With an index that needs none. Another profile's pages are in another folder; a lossless run finds neither."""
    kv = {"index": "bounds", "budget": 144, "local": 32}
    other = tmp_path / "other.safetensors"
    calibrate(
        str(tiny_llama), [cache / "text.txt"], dtype="float32", codewords=8, tokens=256, out=other, ticker=Silent()
    )  # fmt: skip
    for codec, profile, cached in (
        ("kvquant", None, False), ("kvquant:bits=3", None, True), ("kvquant", other, False), ("zstd", None, False),
    ):  # fmt: skip
        config = KVConfig(path=tmp_path / "kv", codec=codec, profile=profile, **kv)
        with Runtime.load(tiny_llama, dtype="float32", kv=config) as runtime:
            chat = runtime.chat()
            assert bool(chat.read_text(TEXT[:1500]).cached) == cached
            runtime.store.flush()
            assert len(chat.send("And then?", max_new_tokens=4, ignore_eos=True).tokens) == 4
            assert "profile" not in runtime.engine.index_identity


def test_another_reading_of_the_same_model_uses_it(made: Result, tiny_llama: Path, tmp_path: Path) -> None:
    with Runtime.load(tiny_llama, dtype="float32", kv=KVConfig(path=tmp_path / "kv")) as runtime:
        engine = runtime.reading(KVConfig(path=tmp_path / "kv", index="a2ats:zones=1"))
        assert "profile=" in engine.index_identity


def test_what_is_captured_is_what_the_layer_attends_with(tiny_llama: Path) -> None:
    """Rotated to where they stand, keys are those of a cache; queries, turned to a distance, make Q^T Q. Pages are the
    cache's own."""
    model = Model.load(tiny_llama, torch.device("cpu"), torch.float32)
    read, tested = _contexts(model, [TEXT], 400)
    found = dict(_captured(model, [*read, tested], 2048, Silent()))
    seen: dict[int, tuple[Tensor, Tensor, Tensor]] = {}
    squares: dict[int, list[Tensor]] = {0: [], 1: [], 2: []}
    ids = torch.from_numpy(tested).unsqueeze(0)
    tables = model.rotary(torch.arange(ids.shape[1]).unsqueeze(0), torch.float32)

    def attend(layer: int, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
        q, k = model.rotate(layer, q, k, tables)
        seen[layer] = q[0], k[0], v[0]
        squares[layer].append(q[0].square().mean(1).reshape(2, -1, 8).mean(1))
        mask = torch.ones(ids.shape[1], ids.shape[1], dtype=torch.bool).tril()
        repeated = [each.repeat_interleave(3, 1) for each in (k, v)]
        scores = (q @ repeated[0].transpose(2, 3) * scale).masked_fill(~mask, float("-inf"))
        return scores.softmax(-1) @ repeated[1]

    with torch.inference_mode():
        for context in [*read, tested]:
            hidden = model.embed(torch.from_numpy(context).unsqueeze(0))
            for layer in range(model.num_layers):
                hidden = model.run_layer(model.layer(layer, prefill=True), hidden, attend)
    assert found.keys() == {0, 1, 2}
    rows = ids.shape[1]
    for layer, (keys, grams, pages, sensitivity) in found.items():
        q, k, v = seen[layer]
        torch.testing.assert_close(sensitivity, torch.stack(squares[layer]).mean(0), rtol=1e-4, atol=1e-4)
        whole = pages[-(rows // 16) :].permute(1, 2, 0, 3, 4).reshape(2, 2, -1, 8)
        torch.testing.assert_close(whole, torch.stack([k, v])[:, :, : rows - rows % 16], rtol=1e-4, atol=1e-4)
        assert keys.shape[1] == len(grams) * rows == (len(read) + 1) * rows
        rotation, positions = model.rotation(layer), torch.arange(rows)
        torch.testing.assert_close(rotation.rotate(keys[:, -rows:], positions), k, rtol=1e-4, atol=1e-4)
        far = rotation.rotate(rotation.unrotate(q, positions), torch.full((rows,), 2048)).reshape(2, -1, 8).double()
        torch.testing.assert_close(grams[-1], far.transpose(1, 2) @ far, rtol=1e-3, atol=1e-2)


def test_contexts_are_spread_and_one_is_kept_for_testing(tiny_llama: Path) -> None:
    model = Model.load(tiny_llama, torch.device("cpu"), torch.float32)
    texts = ["a" * 3000, "b" * 1000]
    read, tested = _contexts(model, texts, 800)
    assert {len(ids) for ids in [*read, tested]} == {200}
    assert len(read) == 4
    letters = [model.tokenizer.decode(ids[:1]) for ids in read]
    assert letters == ["a", "a", "a", "b"]
    long, _ = _contexts(model, ["a" * 50_000], 4 * CONTEXT)
    assert {len(ids) for ids in long} == {CONTEXT}


@pytest.mark.parametrize("family", ["gemma3_text", "smollm3", "phi3"])
def test_families(family: str, cache: Path, tmp_path: Path) -> None:
    """Layers with a window are read but not learned; layers without positions, or with half of them, are learned."""
    model, ticker = save_tiny_model(tmp_path / "model", family), Silent()
    done = calibrate(
        str(model), [cache / "text.txt"], dtype="float32", codewords=16, tokens=512, ticker=ticker,
        out=tmp_path / "here.safetensors",
    )  # fmt: skip
    expected = [1] if family == "gemma3_text" else [0, 1, 2]
    assert sorted(load_profile(done.path)[0].layers) == expected
    assert ticker.total == len(ticker.told) == expected[-1] + 1
    with load(model, tmp_path / "kv", profile=done.path) as runtime:
        chat = runtime.chat()
        chat.read_text(TEXT[:800])
        assert len(chat.send("And then?", max_new_tokens=8, ignore_eos=True).tokens) == 8


def test_codes_of_cached_keys_are_those_of_the_codebook(made: Result, tiny_llama: Path, tmp_path: Path) -> None:
    """Keys that were rotated, stored and read back find the codewords of the keys before RoPE."""
    profile, _ = load_profile(default_path(tiny_llama))
    with load(tiny_llama, tmp_path / "kv") as runtime:
        layer = runtime.engine.indexes[1]
        keys = torch.randn(2, 64, 8, generator=torch.Generator().manual_seed(0))
        state = layer.build(runtime.model.rotation(1).rotate(keys, torch.arange(64)))
    parts = profile.layers[1]
    norms = half_norms(parts["metric"], parts["codewords"])
    codes = nearest_codewords(keys - parts["center"], parts["metric"], parts["codewords"], norms)
    assert (layer.export(state)["codes"][:, :, 0].long() == codes).float().mean() > 0.98, "but for ties in rounding"


@pytest.fixture
def small(cache: Path, tiny_llama: Path) -> list[str]:
    """What calibrates in a moment, but for `--out`."""
    text = str(cache / "text.txt")
    return ["calibrate", str(tiny_llama), "--text", text, "--codewords", "8", "--tokens", "64", "--dtype", "float32"]


def test_a_profile_is_never_lost_to_a_file_that_cannot_be_written(
    small: list[str], tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "gone").mkdir()
    learn = _learn

    def learn_meanwhile(*arguments: Any) -> Any:
        (tmp_path / "gone").rmdir()
        return learn(*arguments)

    monkeypatch.setattr("stratakv.runtime.evaluation.calibrate._learn", learn_meanwhile)
    said = last_line(command(*small, "--out", tmp_path / "gone" / "p.safetensors"))
    assert "p.safetensors: could not be written (No such file or directory); the profile is kept in " in said
    kept = re.search(r"kept in (\S+\.safetensors): move it, or use it where it is \(--profile\)", said)
    assert kept is not None
    assert load_profile(Path(kept[1]))[0].model == model_digests(tiny_llama)[0]


def test_a_profile_for_a_device_replaces_none(small: list[str], tmp_path: Path) -> None:
    assert command(*small, "--out", "/dev/null").exit_code == 0
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode)
    assert "No space left on device); the profile is kept in " in last_line(command(*small, "--out", "/dev/full"))
    assert stat.S_ISCHR(os.stat("/dev/full").st_mode)


# Refusals


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--text", "{cache}/none.txt"], "none.txt: no such file"),
        (
            ["--text", "{cache}/text.txt"],
            "the texts hold 1 whole contexts of 2048 tokens, and 9 are needed to learn from",
        ),
        (["--text", "{cache}/text.txt", "--tokens", "64", "--codewords", "65"], "at most as many as tokens, not 65"),
        (["--text", "{cache}/text.txt", "--codewords", "0"], "codewords is 1 to 32768"),
        (["--text", "{cache}/text.txt", "--out", "{cache}/nowhere/p"], "its folder does not exist"),
    ],
)
def test_bad_input(arguments: list[str], message: str, cache: Path, tiny_llama: Path) -> None:
    filled = [argument.format(cache=cache) for argument in arguments]
    assert message in one_line(command("calibrate", tiny_llama, "--dtype", "float32", *filled))


def test_another_profile_is_another_identity(made: Result, cache: Path, tiny_llama: Path, tmp_path: Path) -> None:
    """A session saved with one is not restored with another: codes would mean nothing. Its keys are coded anew."""
    text, other = cache / "text.txt", tmp_path / "other.safetensors"
    calibrate(str(tiny_llama), [text], dtype="float32", codewords=16, tokens=1024, out=other, ticker=Silent())
    with load(tiny_llama, tmp_path / "kv") as runtime:
        chat = runtime.chat()
        chat.read_text(TEXT[:1500])
        chat.save("keeper")
    with load(tiny_llama, tmp_path / "kv", profile=other) as runtime:
        chat = runtime.chat(session="keeper")
        layer = chat._sequence.layers[0]
        assert isinstance(layer, TieredLayer)
        assert layer.index.export(layer.state)["codes"].max() < 16
        assert len(chat.send("What did the keeper write?", max_new_tokens=4, ignore_eos=True).tokens) == 4
