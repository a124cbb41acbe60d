"""One question and its answer: on stdout first, whatever happens after, with the documents as part of the prompt."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NoReturn

import pytest
from places import RECALL
from typer.testing import CliRunner, Result

from stratakv.runtime import Chat, KVConfig, SessionError
from stratakv.runtime.cli.app import app
from stratakv.runtime.cli.chat_setup import ChatOptions
from stratakv.runtime.cli.one_shot import one_shot


def chat(*arguments: str | Path, store: Path, model: Path) -> Result:
    return CliRunner().invoke(app, ["chat", "-m", str(model), "--kv-dir", str(store), *map(str, arguments)])


def test_json_is_one_object_with_every_part(tiny_llama: Path, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("A short text about a red door. " * 40)
    arguments = ("-p", "What colour is the door?", "-f", text, "-n", "8", "--json", "--gpu-kv-gb", "0.01")
    for cached in (False, True):
        result = chat(*arguments, store=tmp_path / "kv", model=tiny_llama)
        assert result.exit_code == 0, result.stderr
        found = json.loads(result.stdout)
        assert set(found) >= {"text", "usage", "timings", "tiers"}
        assert found["usage"]["completion_tokens"] <= 8
        assert set(found["tiers"]) == {"gpu", "host", "disk"}
        assert found["timings"]["prompt_n"] + found["timings"]["cache_n"] == found["usage"]["prompt_tokens"]
        assert (found["stats"]["pages_shared"] > 0 or found["tiers"]["disk"]["pages"] > 0) or not cached


def test_a_reply_that_repeats_itself_is_ended_and_says_so(tmp_path: Path) -> None:
    arguments = ("--disk-kv-gb", "0.2", "-p", "k1 v2 ? k1", "-n", "400", "--temp", "0")
    result = chat(*arguments, store=tmp_path, model=RECALL)
    assert "the reply repeated itself and was ended; --max-repeats 0 lets it go on" in result.stderr


def test_the_answer_is_there_though_it_cannot_be_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A command whose end fails has not computed for nothing."""

    def fail(*_: object) -> NoReturn:
        raise SessionError("there is no room")

    monkeypatch.setattr(Chat, "save", fail)
    kv = KVConfig(path=tmp_path, host_gb=0.05, disk_gb=0.05)
    options = ChatOptions(str(RECALL), "cpu", "auto", kv, [], None, None, {"max_new_tokens": 1}, save="mine")
    with pytest.raises(SessionError, match="no room"):
        one_shot(options, "k1 v2 ? k1", as_json=True)
    assert json.loads(capsys.readouterr().out)["text"] == "v2"


@pytest.mark.parametrize(
    ("prompt", "changes", "said"),
    [
        (" \n", {}, "the prompt is empty"),
        ("caf\udce9", {}, r"the prompt is not UTF-8 text \(character 4\)"),
        ("hi", {"files": [Path("none.txt")]}, "none.txt: no such file"),
        ("hi", {"session": "nosuch"}, "no session 'nosuch' for this model or any other"),
    ],
)
def test_what_cannot_be_is_said_before_a_model_is_looked_for(
    prompt: str, changes: dict[str, Any], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    given = {"files": [], "session": None, "system": None, **changes}
    options = ChatOptions("no such model", "auto", "auto", KVConfig(path=tmp_path), generation={}, **given)
    with pytest.raises((ValueError, OSError, SessionError), match=said):
        one_shot(options, prompt, as_json=False)
