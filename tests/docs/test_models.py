"""docs/MODELS.md names what the code reads and refuses, no more and no less."""

from __future__ import annotations

import re

import gguf
import pytest
from gguf_cases import cases
from gguf_contents import changed
from gguf_models import FAMILIES
from places import ROOT

from stratakv.runtime.model.gguf import kinds, number_types
from stratakv.runtime.model.gguf.architectures import _ENTRIES, ARCHITECTURES, OUTER, read_settings
from stratakv.runtime.model.gguf.rope import TENSORS
from stratakv.runtime.model.gguf.said import Said
from stratakv.runtime.model.gguf.settings import _NEUTRAL, WITHOUT_EFFECT
from stratakv.runtime.untrusted.families import FAMILIES as SUPPORTED

PAGE = (ROOT / "docs" / "MODELS.md").read_text()
YARN = {"rope.scaling.type": "yarn", "rope.scaling.factor": 2.0, "rope.scaling.yarn_beta_fast": 30.0}


def rows(heading: str, columns: int = 1) -> list[list[str]]:
    """The first cells of each row of the tables under a heading."""
    section = re.split(r"^#+ ", PAGE, flags=re.MULTILINE)
    (text,) = [part for part in section if part.startswith(f"{heading}\n")]
    cells = [line.split("|")[1 : 1 + columns] for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in row] for row in cells if "---" not in row[0]]


def code(text: str) -> list[str]:
    return re.findall(r"`([^`]+)`", text)


def keys_asked_for(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """By any architecture."""
    asked: set[str] = set()
    monkeypatch.setattr(Said, "refuse_rest", lambda said, without_effect: asked.update(said._asked))
    for family in FAMILIES:
        read_settings(changed(family))
        if family not in ("phi3", "gemma4", "deepseek2"):
            read_settings(changed(family, {**YARN, "rope.scaling.yarn_beta_slow": 2.0}))
    return asked


def test_architectures() -> None:
    found = {code(name)[0]: code(family)[0] for name, family in rows("GGUF: architectures", 2)[1:]}
    assert found == {name: entry.family for name, entry in ARCHITECTURES.items()}
    assert {case.family for case in cases(256).values()} == ARCHITECTURES.keys()
    (said,) = re.findall(r"of the families (.*?), as plain", PAGE, flags=re.DOTALL)
    assert set(code(said)) == SUPPORTED.keys()


def test_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    found = {code(key)[0]: what for key, what in rows("Keys", 2)[1:] if code(key)}
    asked = keys_asked_for(monkeypatch)
    assert found.keys() == asked | WITHOUT_EFFECT.keys() | _NEUTRAL.keys()
    assert {key for key, what in found.items() if what == "without effect"} == WITHOUT_EFFECT.keys() - asked
    some = {key for entry in _ENTRIES for key in entry.names.factors.keys() | entry.names.reads}
    assert {key for key, what in found.items() if what == "refused"} == _NEUTRAL.keys() - some


def test_tensors() -> None:
    found = {name for (cell,) in rows("Tensors")[1:] for name in code(cell)}
    layers = {
        name
        for entry in ARCHITECTURES.values()
        for name in (
            *entry.names.layer,
            *entry.names.with_experts,
            *entry.names.outside,
            entry.names.final_norm,
            *OUTER.values(),
        )
    }
    layers = {name.removesuffix(".weight") for name in layers}
    of_rope = {name.removesuffix(".weight") for name in TENSORS}
    assert found == layers | of_rope | {".scale", ".input_scale", "nextn_predict_layers"}


def test_types_of_numbers() -> None:
    read, refused = re.findall(r"(?:Read, with|Refused by name).*?\.\s", PAGE, flags=re.DOTALL)
    readable = {kind.name for kind in gguf.GGMLQuantizationType if number_types._is_readable(int(kind))}
    assert set(code(read)) - {"gguf"} == readable
    assert not set(code(refused)) & readable
    known = {*number_types._LATER.values(), *(kind.name for kind in gguf.GGMLQuantizationType)}
    assert set(code(refused)) <= known


def test_files_that_are_no_model() -> None:
    named = {name for (cell,) in rows("GGUF: which files") for name in code(cell)}
    assert kinds._ALONE.keys() <= named


def test_every_difference_from_llama_cpp_that_is_tried_is_told() -> None:
    """Cases that llama.cpp computes otherwise are in that table, by the key that they have in common."""
    told = " ".join(cell for row in rows("What differs from llama.cpp b11549", 2) for cell in row)
    differing = {name for name, case in cases(256).items() if case.unlike_llama_cpp}
    assert differing == {"phi3, window", "llama, yarn with betas", "gpt-oss"}
    assert "`phi3.attention.sliding_window`" in told
    assert "bounds of gpt-oss's YaRN" in told
    assert "`rope.scaling.yarn_beta_fast`" in told
