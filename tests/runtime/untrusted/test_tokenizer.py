"""A tokenizer's file says what is done to a text: as often, as deep and as much longer as it may, and no more."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from stratakv.runtime import ModelFileError
from stratakv.runtime.untrusted.settings import MAX_ADDED
from stratakv.runtime.untrusted.tokenizer import MAX_DEPTH, MAX_GROWTH, MAX_STEPS, check_tokenizer


def check(folder: Path, **found: Any) -> None:
    path = folder / "tokenizer.json"
    path.write_text(json.dumps({"model": {"vocab": {"a": 0}}} | found))
    check_tokenizer(path)


def replacing(content: str) -> dict[str, Any]:
    return {"type": "Replace", "pattern": {"String": "a"}, "content": content}


def nested(levels: int) -> dict[str, Any]:
    stage: dict[str, Any] = {"type": "Lowercase"}
    for _ in range(levels):
        stage = {"type": "Sequence", "normalizers": [stage]}
    return stage


@pytest.mark.parametrize(
    ("name", "stage"),
    [
        ("normalizer", {"type": "Sequence", "normalizers": [replacing("aa")] * 9}),
        ("normalizer", replacing("a" * 1000)),
        ("normalizer", {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "x" * 20}] * 3}),
        ("normalizer", {"type": "Sequence", "normalizers": [{"type": "NFC"}] * 40}),
        ("normalizer", nested(6)),
        ("decoder", {"type": "Sequence", "decoders": [replacing("aa")] * 9}),
        ("pre_tokenizer", {"type": "Sequence", "pretokenizers": [{"type": "Whitespace"}] * 40}),
        ("pre_tokenizer", {"type": "Sequence", "pretokenizers": [[0] * 100] * 100}),
        ("post_processor", nested(6)),
    ],
)
def test_a_tokenizer_that_rewrites_without_end(tmp_path: Path, name: str, stage: dict[str, Any]) -> None:
    with pytest.raises(ModelFileError, match=rf"tokenizer\.json: {name}: "):
        check(tmp_path, **{name: stage})


def sequence(*steps: dict[str, Any]) -> dict[str, Any]:
    return {"type": "Sequence", "steps": list(steps)}


@pytest.mark.parametrize(
    ("fine", "more", "says"),
    [
        (sequence(*[{"type": "NFC"}] * (MAX_STEPS - 1)), {"type": "NFC"}, f"more than {MAX_STEPS} steps"),
        (sequence(*[replacing("a" * 16)] * 2), replacing("aa"), f"its steps make a text {2 * MAX_GROWTH} times longer"),
        (sequence(replacing("a" * MAX_GROWTH), replacing("")), {"type": "Prepend", "prepend": "▁▁"}, "times longer"),
    ],
    ids=["steps", "growth", "prefix"],
)
def test_as_much_as_may_be_and_one_more(tmp_path: Path, fine: dict[str, Any], more: dict[str, Any], says: str) -> None:
    check(tmp_path, normalizer=fine, decoder=fine)
    with pytest.raises(ModelFileError, match=f"decoder: .*{says}"):
        check(tmp_path, normalizer=fine, decoder=sequence(*fine["steps"], more))


def test_levels_are_counted_from_the_stage(tmp_path: Path) -> None:
    deep: Any = 1
    for _ in range(MAX_DEPTH):
        deep = [deep]
    check(tmp_path, post_processor=deep)
    with pytest.raises(ModelFileError, match=f"post_processor: more than {MAX_DEPTH} levels"):
        check(tmp_path, post_processor=[deep])


@pytest.mark.parametrize("added", [{"a": 1}, "a", [0] * (MAX_ADDED + 1)], ids=["object", "text", "many"])
def test_added_tokens_are_a_list_that_ends(tmp_path: Path, added: Any) -> None:
    check(tmp_path, added_tokens=[0] * MAX_ADDED)
    check(tmp_path, added_tokens=None)
    with pytest.raises(ModelFileError, match=rf"tokenizer\.json: added_tokens: expected a list of up to {MAX_ADDED}$"):
        check(tmp_path, added_tokens=added)
