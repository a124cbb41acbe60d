"""Codecs by their specs: names, settings, and the one spelling of all that mean the same."""

from __future__ import annotations

import pytest
from codecs_under_test import layout

from stratakv.storage.codecs.registry import CODECS, codec_class, codec_names, make_codec, plain_spec


@pytest.mark.parametrize("name", CODECS)
def test_every_codec_says_what_it_is(name: str) -> None:
    found, options = codec_class(name)
    assert (found.name, options) == (name, found.Options())
    assert make_codec(name, layout()).payload_bytes <= layout().page_bytes


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("gzip", "codec is one of raw, zstd, .*, adaptive, not 'gzip'"),
        ("", "codec is one of .*, not ''"),
        ("adaptive", "codec is one of"),
        ("kivi:", "codec 'kivi' has no setting ''; its settings: bits"),
        ("zstd:level=3", "codec 'zstd' has no setting 'level'; its settings: none"),
        ("kivi:bits=two", "codec 'kivi:bits=two': bits is a whole number, not 'two'"),
        ("kivi:bits=-2", "bits is a whole number, not '-2'"),
        ("kivi:bits=²", "bits is a whole number"),
    ],
)
def test_what_is_no_codec(spec: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        codec_class(spec)


def test_specs_that_mean_the_same_have_one_spelling() -> None:
    assert [plain_spec(spec) for spec in ("kivi", "kivi:bits=2", "kivi: bits = 4", "adaptive", "int4")] == [
        "kivi", "kivi", "kivi:bits=4", "adaptive", "int4",
    ]  # fmt: skip
    assert [plain_spec(name) for name in codec_names()] == codec_names()
