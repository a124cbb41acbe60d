"""One model has one folder in a store and the same sessions, whatever it is called and whichever version made it."""

from __future__ import annotations

import fcntl
import os
import shutil
from pathlib import Path

import pytest
from places import RECALL
from recall_stores import PAIRS, is_whole, load, old_store, save, sessions, with_setting
from tiny_gguf import write_tiny_gguf

from stratakv.runtime import SessionError
from stratakv.runtime.model.locate import ALIASES, Alias, locate
from stratakv.runtime.sessions import home
from stratakv.runtime.sessions.saved import describe, store_folders

pytestmark = pytest.mark.usefixtures("own_cache")


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return shutil.copytree(RECALL, tmp_path / "a")


# Spellings


def test_every_spelling_finds_the_session(model: Path, store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(model, store, "s")
    (model.parent / "b").symlink_to(model)
    copy = shutil.copytree(model, model.parent / "c with space")
    newer = with_setting(model, model.parent / "d", transformers_version="99.0.0", eos_token_id=[0, 7])
    monkeypatch.chdir(model)
    for spelling in (model, model.parent / "b", copy, newer, ".", "../a", f"{model}/", "../c with space"):
        with load(spelling, store) as runtime:
            assert runtime.sessions() == ["s"]
            assert is_whole(runtime.chat(session="s")), spelling
            assert runtime.chat().read_text(PAIRS).cached > 16
    (folder,) = store.iterdir()
    assert folder.name.startswith("a_")
    names = describe(folder)["names"]
    assert {str(model), str(copy), str(newer)} <= set(names)
    assert "." not in names


def test_an_old_folder_is_listed_before_it_was_ever_opened(model: Path, store: Path) -> None:
    old_store(store)
    assert sessions(store, "list", "-m", str(model)).startswith("old ")
    assert sessions(store, "list", "-m", str(with_setting(model, model.parent / "b", rms_norm_eps=1.0))) == (
        "no sessions\n"
    )


def test_what_changes_a_number_is_another_store(model: Path, store: Path) -> None:
    save(model, store, "s")
    other = with_setting(model, model.parent / "other", rms_norm_eps=1e-3)
    with load(other, store) as runtime:
        assert runtime.sessions() == []
        assert runtime.chat().read_text(PAIRS).cached == 0
        with pytest.raises(SessionError, match=f"no session 's'.*there is one with model='{model}'"):
            runtime.chat(session="s")
    assert len(store_folders(store)) == 2


def test_a_gguf_file_is_one_model_under_any_name(tmp_path: Path, store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = write_tiny_gguf(tmp_path / "tiny.gguf")
    save(whole, store, "s", "A short text to keep. ")
    converted: list[str] = []
    renamed = Path(shutil.copy(whole, tmp_path / "renamed \u0436-1.Q4.GGUF"))
    assert locate(str(renamed), "bfloat16", on_convert=converted.append).name.startswith("tiny-")
    package = tmp_path / "lib" / "tiny_model_package"
    package.mkdir(parents=True)
    shutil.copy(whole, package / "m.gguf")
    monkeypatch.syspath_prepend(str(package.parent))
    monkeypatch.setitem(ALIASES, "tiny", Alias("nobody/nothing", ("tiny_model_package/m.gguf",), "-"))
    made = shutil.copytree(locate(str(whole), "bfloat16", on_convert=converted.append), tmp_path / "copied")
    assert converted == []
    for spelling in (renamed, "tiny", made):
        with load(spelling, store) as runtime:
            assert runtime.sessions() == ["s"], spelling
    assert len(store_folders(store)) == 1
    for spelling in (whole, renamed, "tiny", made):
        assert "s " in sessions(store, "list", "-m", str(spelling)), spelling


def test_the_commands_take_any_spelling(model: Path, store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(model, store, "s")
    copy = with_setting(model, model.parent / "copy", transformers_version="99.0.0")
    other = with_setting(model, model.parent / "other", rms_norm_eps=1e-3)
    save(other, store, "t")
    (model.parent / "link").symlink_to(model)
    monkeypatch.chdir(model)
    for spelling in (".", "../a", str(copy), str(model.parent / "link")):
        listed = sessions(store, "list", "-m", spelling)
        assert listed.split()[0] == "s"
        assert listed.count("\n") == 1
        assert "session   s" in sessions(store, "show", "s", "-m", spelling)
    assert sessions(store, "list", "-m", "nothing/nowhere") == "no sessions\n"
    asked = sessions(store, "show", "s", "-m", str(other))
    assert "no session 's'; saved: t; there is one elsewhere: --in a_" in asked
    assert sessions(store, "rm", "s", "-m", str(copy)) == ""
    assert sessions(store, "list").split()[0] == "t"


def test_a_folder_is_chosen_and_made_while_no_other_process_can(
    tmp_path: Path, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or two that begin together would make one each."""
    honest, seen = home.private_folder, []

    def make(folder: Path) -> None:
        other = os.open(store, os.O_RDONLY)
        try:
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            seen.append(folder)
        finally:
            os.close(other)
        honest(folder)

    monkeypatch.setattr(home, "private_folder", make)
    found = [home.find_home(store, name, {"weights": "w"}, {}, former=dict).folder for name in ("one", "two")]
    assert found == seen == [found[0]] * 2
    assert found[0].name.startswith("one_")


# Folders of earlier versions


def test_an_old_folder_is_used_as_it_is(model: Path, store: Path) -> None:
    old = old_store(store)
    with load(model, store) as runtime:
        chat = runtime.chat(session="old")
        assert is_whole(chat)
        assert [message["content"] for message in chat.messages] == ["text", "? k3", "v21 v7"]
        chat.send("? k2", max_new_tokens=2)
        chat.save("new")
    newer = with_setting(model, model.parent / "newer", transformers_version="99.0.0")
    with load(newer, store) as runtime:  # whose files never had that fingerprint
        assert runtime.sessions() == ["new", "old"]
        assert is_whole(runtime.chat(session="new"))
    assert store_folders(store) == [old]


def test_a_damaged_config_json_is_written_anew(model: Path, store: Path) -> None:
    save(model, store, "s")
    (folder,) = store_folders(store)
    (folder / "config.json").write_bytes(b"\xff{")
    with load(model, store) as runtime:
        assert runtime.sessions() == ["s"]
    assert describe(folder)["model"] == str(model)


# Names


def test_nearly_the_name_is_asked_about_and_a_long_list_is_cut(model: Path, store: Path) -> None:
    with load(model, store) as runtime:
        chat = runtime.chat()
        chat.read_text(PAIRS)
        for number in range(12):
            chat.save(f"Letter {number}")
        with pytest.raises(SessionError) as caught:
            runtime.chat(session="letter 3")
    assert "Letter 10, Letter 11, Letter 2" in str(caught.value)
    assert "and 2 more; did you mean 'Letter 3'" in str(caught.value)


def test_an_accent_composed_otherwise_is_the_same_name(model: Path, store: Path) -> None:
    composed, apart = "caf\u00e9", "cafe\u0301"
    save(model, store, apart)
    with load(model, store) as runtime:
        assert runtime.sessions() == [composed]
        for name in (composed, apart):
            chat = runtime.chat(session=name)
            assert chat.would_replace(apart) is None
            chat.save(name)
        assert runtime.store.disk is not None
        runtime.store.disk.put_session(apart, b"")  # as earlier versions did
        assert runtime.sessions() == [apart, composed]
    assert "session   " in sessions(store, "show", composed)
    assert sessions(store, "rm", composed) == ""
    assert sessions(store, "rm", composed) == "", "the other one"
    assert sessions(store, "list") == "no sessions\n"


def test_the_advice_can_be_typed(model: Path, store: Path) -> None:
    for name in ("-rf", "two words; $HOME"):
        save(model, store, name)
    with load(model, store) as runtime:
        assert runtime.store.disk is not None
        for name in ("-rf", "two words; $HOME"):
            runtime.store.disk.put_session(name, b"damaged")
    asked = sessions(store, "show", "--", "-rf")
    assert asked.rstrip().endswith(f"to remove it: stratakv sessions rm --kv-dir {store} -- -rf")
    assert f"rm 'two words; $HOME' --kv-dir {store}" in sessions(store, "show", "two words; $HOME")


def test_columns_of_wide_and_long_names(model: Path, store: Path) -> None:
    with load(model, store) as runtime:
        chat = runtime.chat()
        chat.read_text(PAIRS)
        for name in ("a", "\u8a71\u8a71", "x" * 150):
            chat.save(name)
    wide, narrow, long = sorted(sessions(store, "list").splitlines(), key=len)
    assert narrow.index("tokens") == wide.index("tokens") + 2 == 51
    assert long.startswith("x" * 150 + "  ")
