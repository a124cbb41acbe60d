"""One table of families: what is known of each stands there and nowhere else."""

from __future__ import annotations

import ast

from places import ROOT

from stratakv.runtime.model.gguf.architectures import ARCHITECTURES, VARIANTS
from stratakv.runtime.untrusted.families import FAMILIES, WRAPPERS
from stratakv.runtime.untrusted.family import ROPE_KINDS
from stratakv.runtime.untrusted.rope import _OF_KIND

RUNTIME = ROOT / "runtime"
NAMED = {
    "untrusted/families.py": "the table",
    "model/gguf/architectures.py": "the functions that make a config.json of a file's keys, by family",
    "model/gguf/vocabulary.py": "words in a file's own name, which say what it does not: no family's `model_type`",
    "model/llama_config.py": "Llama's configuration class, as transformers has it without its imports",
    "model/model_files.py": "where that class is taken",
    "bench/shapes.py": "sizes of known models, to measure with",
}
"""Files that name a family, and why."""

WITHOUT_GGUF = {"mistral"}
"""Its files have another family's architecture."""


def test_no_other_file_names_a_family() -> None:
    found = {
        path.relative_to(RUNTIME).as_posix()
        for path in RUNTIME.rglob("*.py") for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Constant) and node.value in FAMILIES
    }  # fmt: skip
    assert found == NAMED.keys()


def test_the_table_fits_together() -> None:
    assert {family for family in WRAPPERS.values() if family is not None} <= FAMILIES.keys()
    assert tuple(_OF_KIND) == (*ROPE_KINDS, "proportional")
    assert all(set(family.rope_kinds) <= _OF_KIND.keys() for family in FAMILIES.values())
    assert not any(family.refused.keys() & family.names for family in FAMILIES.values())
    of_gguf = {name for name, family in FAMILIES.items() if family.gguf is not None}
    assert VARIANTS.keys() <= ARCHITECTURES.keys()
    entries = [*ARCHITECTURES.values(), *VARIANTS.values()]
    assert {entry.family for entry in entries} == of_gguf == FAMILIES.keys() - WITHOUT_GGUF
