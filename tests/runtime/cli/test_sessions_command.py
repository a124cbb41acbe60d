"""`stratakv sessions`: over all models of a store, without loading one."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from records import flip_bit, record_offsets
from tiny_models import save_tiny_model
from typer.testing import CliRunner, Result

from stratakv.runtime import KVConfig, Runtime
from stratakv.runtime.cli.app import app

DOCUMENTS = {name: f"The {name} keeper wrote the log every evening, and hid the letter. " * 12 for name in "abc"}


def sessions(*arguments: str, store: Path) -> Result:
    return CliRunner().invoke(app, ["sessions", *arguments, "--kv-dir", str(store)])


def load(model: Path, store: Path, **changes: Any) -> Runtime:
    options = {"index": "bounds", "budget": 112, "host_gb": 0.05, **changes}
    return Runtime.load(model, dtype="float32", kv=KVConfig(path=store, **options))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    """Two models and a store: session a and b of the first, a of the second, c read but not saved."""
    folder = tmp_path_factory.mktemp("made")
    models = save_tiny_model(folder / "llama"), save_tiny_model(folder / "qwen", "qwen3")
    for model, names in zip(models, ("ab", "a"), strict=True):
        with load(model, folder / "kv") as runtime:
            for name in names:
                chat = runtime.chat()
                chat.read_text(DOCUMENTS[name], name)
                chat.save(name)
                chat.close()
            runtime.chat().read_text(DOCUMENTS["c"])
    return folder / "kv", *models


@pytest.fixture
def store(made: tuple[Path, Path, Path], tmp_path: Path) -> Path:
    """A copy of the store, to change."""
    return shutil.copytree(made[0], tmp_path / "kv")


@pytest.fixture(autouse=True)
def _no_model_is_loaded(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    request.getfixturevalue("made")

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a model was loaded")

    if "loads" not in request.node.name:
        monkeypatch.setattr("stratakv.runtime.model.model.Model.load", refuse)


def test_list_shows_every_model(made: tuple[Path, Path, Path]) -> None:
    kv, llama, qwen = made
    lines = sessions("list", store=kv).stdout.splitlines()
    assert [line.split()[0] for line in lines] == ["a", "b", "a"]
    assert all(" tokens " in line and " MB " in line and "saved 20" in line for line in lines)
    assert [line.split()[-1] for line in lines] == ["llama", "llama", "qwen"]
    assert sessions("list", "-m", str(qwen), store=kv).stdout.count("\n") == 1
    assert sessions("list", "-m", str(llama), "--dtype", "float32", store=kv).stdout.count("\n") == 2
    assert sessions("list", "-m", str(llama), "--dtype", "bfloat16", store=kv).stdout == "no sessions\n"
    assert sessions("list", store=kv / "nowhere").stdout == "no sessions\n"


def test_show_tells_what_a_session_is(made: tuple[Path, Path, Path]) -> None:
    kv, llama, _ = made
    shown = sessions("show", "b", store=kv)
    assert shown.exit_code == 0, shown.stderr
    rows = {line[:9].strip(): line[10:] for line in shown.stdout.splitlines()}
    assert rows["session"] == "b"
    assert rows["model"] == str(llama)
    assert int(rows["tokens"]) > 700
    assert int(rows["pages"].split()[0]) == int(rows["tokens"]) // 16
    assert int(rows["bytes"].split()[0]) > 100_000
    assert rows["states"] == "0 (0.0 MB) for other conversations; they give way first"
    assert rows["index"].startswith("bounds")
    assert rows["saved"].startswith("20")
    assert rows["last use"] == "never"
    assert "no session 'x'; saved: a, b" in sessions("show", "x", store=kv).stderr


def test_a_name_in_two_models_asks_which_one(store: Path, made: tuple[Path, Path, Path]) -> None:
    for command in ("show", "rm"):
        asked = sessions(command, "a", store=store)
        assert asked.exit_code == 2
        assert "2 sessions are called 'a'; choose one with --in: llama_" in asked.stderr
    assert sessions("rm", "a", "--in", "qwen", store=store).exit_code == 0
    assert [line.split()[0] for line in sessions("list", store=store).stdout.splitlines()] == ["a", "b"]
    assert sessions("rm", "a", "-m", str(made[1]), store=store).exit_code == 0
    assert [line.split()[0] for line in sessions("list", store=store).stdout.splitlines()] == ["b"]


@pytest.mark.parametrize(
    ("where", "said"),
    [
        (["-m", "nosuch"], "no model 'nosuch' is on this machine or in the store "),
        (["-m", "./nosuch.gguf"], "no model './nosuch.gguf' is on this machine"),
        (["--in", "nosuch"], "begins with 'nosuch'; it has "),
        (["--dtype", "int7"], "dtype is float32, bfloat16, float16 or auto, not 'int7'"),
    ],
)
@pytest.mark.parametrize("command", ["list", "gc", "verify"])
def test_what_cannot_have_sessions_is_refused(command: str, where: list[str], said: str, store: Path) -> None:
    asked = sessions(command, *where, store=store)
    assert (asked.exit_code, asked.stdout) == (2, "")
    assert said in asked.stderr
    assert asked.stderr.count("\n") == 1


def test_a_model_without_sessions_has_none(store: Path, made: tuple[Path, Path, Path], tmp_path: Path) -> None:
    for model in ("smollm2", "owner/name", str(shutil.copytree(made[1], tmp_path / "other"))):
        assert sessions("list", "-m", model, "--dtype", "float16", store=store).stdout == "no sessions\n"


def test_gc_frees_what_no_session_needs_and_no_more_loads(store: Path, made: tuple[Path, Path, Path]) -> None:
    before = size(store)
    done = sessions("gc", store=store)
    assert done.exit_code == 0, done.stderr
    removed, freed, left = (int(part.split()[0]) for part in done.stdout.split(", "))
    assert removed > 100
    assert (freed, left) == (before - size(store), size(store))
    assert freed > before // 4
    assert sessions("verify", store=store).exit_code == 0
    assert sessions("gc", store=store).stdout.startswith("0 records removed, 0 bytes freed")
    with load(made[1], store) as runtime:
        assert runtime.chat(session="b").restored > 700
        assert runtime.chat().read_text(DOCUMENTS["c"]).cached == 0
    used = next(line for line in sessions("show", "b", store=store).stdout.splitlines() if line.startswith("last use"))
    assert "20" in used


def test_gc_to_a_size_takes_unsaved_prefixes_first_and_names_sessions(store: Path) -> None:
    live = size(store)
    for share in (0.98, 0.95, 0.9):
        done = sessions("gc", "--max-gb", str(share * live / 1e9), store=store)
        assert "removed session" not in done.stdout
        assert size(store) <= share * live
    assert len(sessions("list", store=store).stdout.splitlines()) == 3
    last = sessions("gc", "--max-gb", str(0.35 * live / 1e9), store=store)
    assert last.stdout.splitlines()[0].startswith("removed session a (llama_"), "the one used longest ago"
    assert size(store) <= 0.35 * live
    assert sessions("verify", store=store).exit_code == 0
    assert "a rest" not in last.stdout
    assert "more than 0" in sessions("gc", "--max-gb", "0", store=store).stdout


def test_gc_spares_what_a_running_program_uses_loads(store: Path, made: tuple[Path, Path, Path]) -> None:
    """It reads session b, which is deleted and collected meanwhile."""
    with load(made[1], store, host_gb=0.0016) as runtime:
        chat = runtime.chat(session="b")
        assert sessions("rm", "b", store=store).exit_code == 0
        done = sessions("gc", store=store)
        assert "is in use" in done.stdout
        chat.send("Where is the letter?", max_new_tokens=4, ignore_eos=True)
        assert runtime.stats()["pages_recomputed"] == 0
        assert chat.restored + chat.last.timings.prompt_n == chat.last.usage.prompt_tokens
        runtime.store.check_integrity()


def test_verify_names_what_is_damaged(store: Path) -> None:
    sound = sessions("verify", store=store)
    assert sound.exit_code == 0
    assert sound.stdout.endswith(" pages read, 0 damaged or missing\n")
    folder = next(path for path in store.iterdir() if path.name.startswith("llama"))
    places = record_offsets(folder, "pages")
    keys = list(places)[3::40]
    for key in keys:
        flip_bit(folder, places[key][0] + places[key][1] // 2, 3)
    found = sessions("verify", store=store)
    assert found.exit_code == 1
    lines = found.stdout.splitlines()
    for key in keys:
        (line,) = [line for line in lines if key.hex() in line]
        assert "checksum" in line
    assert lines[-1].endswith(f" {len(keys)} damaged or missing")
    assert any("of 'a'" in line or "of 'b'" in line for line in lines)
    offset, length = record_offsets(folder, "sessions")[b"a"]
    flip_bit(folder, offset + length // 2, 0)
    assert "session 'a': checksum" in sessions("verify", store=store).stdout
    assert "damaged: checksum" in sessions("list", store=store).stdout
    assert "session 'a' is damaged" in sessions("show", "a", "--in", "llama", store=store).stderr


def test_a_destroyed_folder_does_not_hide_the_others(store: Path) -> None:
    folder = next(path for path in store.iterdir() if path.name.startswith("llama"))
    os.truncate(folder / "data.mdb", 9000)
    listed = sessions("list", store=store)
    assert listed.exit_code == 0
    assert listed.stdout.count("\n") == 1
    assert "is left out" in listed.stderr
    verified = sessions("verify", store=store)
    assert verified.exit_code == 1
    assert "truncated" in verified.stdout
    (other,) = [path for path in store.iterdir() if path != folder]
    before = (other / "data.mdb").stat().st_size
    assert sessions("rm", "a", "--in", other.name, store=store).exit_code == 0
    collected = sessions("gc", store=store)
    assert collected.exit_code == 0
    assert "truncated" in collected.stdout
    assert (other / "data.mdb").stat().st_size < before


def test_an_unreadable_config_json_is_only_less_to_show(store: Path) -> None:
    for path in store.glob("*/config.json"):
        path.write_text("{")
    assert sessions("list", store=store).stdout.count("\n") == 3
    assert "model     ?" in sessions("show", "b", store=store).stdout


def size(store: Path) -> int:
    return sum(path.stat().st_size for path in store.glob("*/data.mdb"))
