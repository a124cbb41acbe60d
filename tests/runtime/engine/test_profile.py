"""A profile is what was written, of the model that reads through it, or refused with the command that makes one."""

from __future__ import annotations

import json
import re
import stat
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from tiny_models import save_tiny_model
from torch import Tensor
from typer.testing import CliRunner

from stratakv.runtime import KVConfig, LaterProfileError, ProfileError, Runtime
from stratakv.runtime.cli.app import app
from stratakv.runtime.engine.profile import Profile, Profiles, default_path, load_profile, refuse_later
from stratakv.runtime.model.identity import model_digests
from stratakv.runtime.model.model import Model

LAYERS: dict[int, dict[str, Tensor]] = {
    0: {"codewords": torch.arange(24.0).view(2, 3, 4).half(), "distance": torch.tensor(2048)},
    12: {"codewords": torch.ones(2, 3, 4).half(), "metric.inverse": torch.eye(4)},
}


@pytest.fixture
def path(tiny_llama: Path, tmp_path: Path) -> Path:
    """A profile of the tiny model."""
    path = tmp_path / "profile.safetensors"
    Profile(model_digests(tiny_llama)[0], LAYERS, {"tokens": 96}).save(path)
    return path


def load(model: Path, store: Path, **kv: Any) -> Runtime:
    return Runtime.load(model, dtype="float32", kv=KVConfig(path=store, index="a2ats", budget=144, local=32, **kv))


def refusal(*arguments: str | Path) -> str:
    """The one line of a command that does nothing."""
    result = CliRunner().invoke(app, [*map(str, arguments)])
    assert (result.exit_code, result.stdout, result.stderr.count("\n")) == (2, "", 1), result.stderr
    return result.stderr


# The file


def test_what_was_written_is_read(tiny_llama: Path, path: Path) -> None:
    profile, digest = load_profile(path)
    assert (profile.model, profile.notes) == (model_digests(tiny_llama)[0], {"tokens": 96})
    assert {layer: {*parts} for layer, parts in profile.layers.items()} == {n: {*parts} for n, parts in LAYERS.items()}
    for layer, parts in LAYERS.items():
        for name, tensor in parts.items():
            assert torch.equal(profile.layers[layer][name], tensor)
    assert digest == profile.digest().hex() == Profile("another", LAYERS, {}).digest().hex()
    assert profile.save(path) == path.stat().st_size
    assert stat.S_IMODE(path.stat().st_mode) == 0o600, "a text may be told from it"


@pytest.mark.parametrize(
    "other",
    [
        {0: {"a": torch.tensor([1.0, 3.0])}},
        {0: {"a": torch.tensor([[1.0, 2.0]])}},
        {0: {"a": torch.tensor([1.0, 2.0]).view(torch.int32)}},
        {0: {"b": torch.tensor([1.0, 2.0])}},
        {1: {"a": torch.tensor([1.0, 2.0])}},
    ],
    ids=["number", "shape", "type", "name", "layer"],
)
def test_another_tensor_is_another_digest(other: dict[int, dict[str, Tensor]]) -> None:
    assert Profile("m", other, {}).digest() != Profile("m", {0: {"a": torch.tensor([1.0, 2.0])}}, {}).digest()


def test_the_order_and_the_strides_of_tensors_are_not_in_the_digest() -> None:
    one, two = torch.arange(6.0).view(2, 3), torch.ones(2)
    turned = one.T.contiguous().T
    assert (
        Profile("m", {0: {"a": one, "b": two}}, {}).digest() == Profile("m", {0: {"b": two, "a": turned}}, {}).digest()
    )


def test_a_profile_that_cannot_be_written_leaves_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "profile.safetensors"
    one, two = (Profile("m", {0: {"codewords": torch.full((2,), x)}}, {}) for x in (1.0, 2.0))
    one.save(path)

    def fail(*_: Any) -> None:
        raise OSError("no room")

    monkeypatch.setattr("os.replace", fail)
    with pytest.raises(OSError, match="no room"):
        two.save(path)
    assert load_profile(path)[1] == one.digest().hex()
    assert list(tmp_path.iterdir()) == [path]


def test_what_is_no_file_is_not_read() -> None:
    """It may never end."""
    with pytest.raises(ProfileError, match=r"^/dev/zero is no file$"):
        load_profile(Path("/dev/zero"))


@pytest.mark.parametrize("name", ["x" * 300, "file/x"])
def test_a_name_that_cannot_be_a_files_is_refused(name: str, tiny_llama: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ProfileError, match=r"x cannot be read \(.*\); name another one with profile="):
        load(tiny_llama, tmp_path / "kv", profile=tmp_path / name)


def test_nothing_takes_the_place_of_a_later_versions_profile(path: Path, tmp_path: Path) -> None:
    for replaceable in (path, tmp_path / "none", tmp_path):
        refuse_later(replaceable)
    header = json.dumps({"format": 2})
    path.write_bytes(safetensors.torch.save({"layer.0.x": torch.zeros(2)}, {"stratakv_profile": header}))
    with pytest.raises(LaterProfileError, match=r"\(format 2, this .* reads 1\); it is left as it is: .* \(out=\)$"):
        refuse_later(path)


def test_a_profile_is_found_where_an_earlier_version_put_it(tiny_llama: Path, own_cache: None) -> None:
    new, *_, old = model_digests(tiny_llama)
    assert default_path(tiny_llama).stem == new
    earlier = default_path(tiny_llama).with_stem(old)
    earlier.parent.mkdir(parents=True)
    earlier.touch()
    assert default_path(tiny_llama) == earlier
    earlier.with_stem(new).touch()
    assert default_path(tiny_llama) == earlier.with_stem(new)


# Whom it serves


def test_every_layer_knows_the_whole_profiles_digest_and_the_file_is_read_once(tiny_llama: Path, path: Path) -> None:
    profiles, config = Profiles(tiny_llama, "tiny"), KVConfig(index="a2ats", profile=path)
    found = profiles.needed(config)
    digest = load_profile(path)[1]
    assert {layer: bytes(parts["digest"].tolist()).hex() for layer, parts in found.items()} == {0: digest, 12: digest}
    assert torch.equal(found[0]["codewords"], LAYERS[0]["codewords"])
    path.unlink()
    assert profiles.needed(config) is found
    with pytest.raises(ProfileError, match="make one with: stratakv calibrate tiny --text FILE --out"):
        Profiles(tiny_llama, "tiny").needed(config)


def test_an_index_that_needs_none_is_told_nothing(tiny_llama: Path, own_cache: None) -> None:
    assert Profiles(tiny_llama, "tiny").needed(KVConfig(index="bounds")) == {}


def test_a_profile_that_serves_nothing_is_told_of(
    path: Path, tiny_llama: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    kv: dict[str, Any] = {"path": tmp_path / "kv", "index": "bounds", "budget": 144, "disk_gb": 0}
    with pytest.raises(ProfileError, match=r"there is no profile .*nope; index 'bounds' needs none: leave it out"):
        Runtime.load(tiny_llama, kv=KVConfig(**kv, profile=tmp_path / "nope"))
    assert caplog.text == ""
    with Runtime.load(tiny_llama, kv=KVConfig(**kv, profile=path)):
        assert caplog.messages == [f"index 'bounds' and codec 'zstd' need no profile: {path} is not used"]


def test_a_codec_needs_its_part_of_a_profile(path: Path, tiny_llama: Path, tmp_path: Path, own_cache: None) -> None:
    """An earlier version's profile has none."""
    with pytest.raises(
        ProfileError, match=r"codec 'kvquant:bits=4' needs a profile of .*; make one with: stratakv cal"
    ):
        Profiles(tiny_llama, "tiny").needed(KVConfig(codec="kvquant:bits=4"))
    with pytest.raises(ProfileError, match=r"has nothing for codec 'kvquant': an earlier .* calibrate tiny .* --out"):
        Profiles(tiny_llama, "tiny").needed(KVConfig(codec="kvquant", profile=path))
    assert Profiles(tiny_llama, "tiny").needed(KVConfig(index="a2ats", profile=path))
    learned = tmp_path / "learned.safetensors"
    layers = {layer: {**parts, "kvquant.3": torch.zeros(2, 8)} for layer, parts in LAYERS.items()}
    Profile(model_digests(tiny_llama)[0], layers, {}).save(learned)
    assert "digest" in Profiles(tiny_llama, "tiny").needed(KVConfig(codec="kvquant", profile=learned))[12]


def test_a_missing_profile_names_the_command(tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before the weights are loaded."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(Model, "load", None)
    told = refusal("chat", "-m", tiny_llama, "-p", "hi", "--kv-dir", tmp_path / "kv", "--index", "a2ats")
    assert f"index 'a2ats' needs a profile of {tiny_llama}" in told
    assert f"stratakv calibrate {tiny_llama} --text FILE\n" in told
    named = ["--index", "a2ats", "--profile", tmp_path / "none"]
    assert f"--out {tmp_path / 'none'}" in refusal("chat", "-m", tiny_llama, "-p", "hi", *named)
    with pytest.raises(ProfileError, match=r"no .*none\.safetensors; .* --text FILE --out .*none\.safetensors"):
        load(tiny_llama, tmp_path / "kv", profile=tmp_path / "none.safetensors")


def test_a_foreign_profile_is_refused(path: Path, tmp_path: Path) -> None:
    other = save_tiny_model(tmp_path / "other", hidden_size=24)
    with pytest.raises(ProfileError, match=r"is the profile of another model than .*other; make one with: stratakv"):
        load(other, tmp_path / "kv", profile=path)


def changed_digit(payload: bytes) -> bytes:
    return payload[:-9] + bytes([payload[-9] ^ 1]) + payload[-8:]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda payload: payload[:-100], "damaged, or no profile"),
        (lambda payload: payload[:5], "damaged, or no profile"),
        (lambda payload: b"", "damaged, or no profile"),
        (lambda payload: b"a text, as it happens" * 9, "damaged, or no profile"),
        (lambda payload: safetensors.torch.save({"weight": torch.zeros(2)}), "damaged, or no profile"),
        (changed_digit, "its digest differs"),
    ],
    ids=["cut", "shorter than a header", "empty", "text", "other tensors", "a bit"],
)
def test_a_damaged_profile_is_refused(damage: Any, message: str, path: Path, tiny_llama: Path, tmp_path: Path) -> None:
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ProfileError, match=rf"{re.escape(str(path))}.*{message}.*stratakv calibrate"):
        load(tiny_llama, tmp_path / "kv", profile=path)
