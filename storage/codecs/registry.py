"""The names of all codecs. A new codec is one file, one line here and one line in the tests' list.

Classes are imported on use. A *spec* is a name, or a name with settings of that codec: `kivi:bits=4`.
"""

from __future__ import annotations

from dataclasses import fields
from importlib import import_module
from typing import Any

from ..page import PageLayout
from .codec import NamedCodec, Profile

CODECS = {
    "raw": "RawCodec",
    "zstd": "ZstdCodec",
    "int8": "Int8Codec",
    "int4": "Int4Codec",
    "kivi": "KiviCodec",
    "rotatekv": "RotateKVCodec",
    "logquant": "LogQuantCodec",
    "zipcache": "ZipCacheCodec",
    "kvquant": "KVQuantCodec",
}
"""Each codec's name, which is also its module's, and its class."""
LOSSLESS = ("raw", "zstd")
ADAPTIVE = "adaptive"
"""No codec but a choice between two, page by page: see `compression`."""


def codec_names() -> list[str]:
    """The names that a user may give."""
    return [*CODECS, ADAPTIVE]


def codec_class(spec: str) -> tuple[type[NamedCodec], Any]:
    """Find a codec's class and read its options. Raises ValueError for a name or setting that is unknown or out of
    range."""
    name, *settings = spec.split(":")
    if name not in CODECS:
        raise ValueError(f"codec is one of {', '.join(codec_names())}, not {name!r}")
    found: type[NamedCodec] = getattr(import_module(f".{name}", __package__), CODECS[name])
    known = [field.name for field in fields(found.Options)]
    given: dict[str, int] = {}
    for setting in settings:
        key, _, text = (part.strip() for part in setting.partition("="))
        if key not in known:
            raise ValueError(f"codec {name!r} has no setting {key!r}; its settings: {', '.join(known) or 'none'}")
        if not text.isdecimal() or not text.isascii():
            raise ValueError(f"codec {spec!r}: {key} is a whole number, not {text!r}")
        given[key] = int(text)
    try:
        return found, found.Options(**given)
    except ValueError as error:
        raise ValueError(f"codec {spec!r}: {error}") from None


def plain_spec(spec: str) -> str:
    """The one spelling of all specs that mean the same: settings in order, defaults left out."""
    if spec == ADAPTIVE:
        return spec
    found, options = codec_class(spec)
    values = [(field.name, getattr(options, field.name), field.default) for field in fields(options)]
    return ":".join([found.name, *(f"{name}={value}" for name, value, default in values if value != default)])


def profile_part(spec: str) -> str:
    """What the names of the tensors begin with that encoding by a spec takes from a profile; empty if it takes none."""
    return "" if spec == ADAPTIVE else codec_class(spec)[0].needs_profile


def make_codec(spec: str, layout: PageLayout, profile: Profile | None = None) -> NamedCodec:
    """A codec for pages of `layout`. Raises ValueError as `codec_class` does.

    Args:
        profile: of the layer whose pages are encoded, for codecs that need one. None: such a codec decodes only.
    """
    found, options = codec_class(spec)
    return found(layout, options, profile)
