"""A file's statements about its architecture, read so that nothing is left unread."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from ...api.errors import ModelFileError
from ...untrusted.numbers import check_number, shown
from .container import Contents

_REMEDY = "take another file of this model, or its directory of safetensors"


class Said:
    """The keys `<architecture>.*`. Every question is noted; keys that nobody asked for are refused at the end."""

    def __init__(self, contents: Contents, architecture: str) -> None:
        self.path, self.architecture, self._keys = contents.path, architecture, contents.keys
        self._asked: set[str] = set()

    def has(self, name: str) -> bool:
        return self._full(name) in self._keys

    def value(self, name: str, default: Any = None) -> Any:
        """The value as it stands in the file; `default` if the file has none."""
        self._asked.add(name)
        return self._keys.get(self._full(name), default)

    def whole(self, name: str, field: str | None = None, default: int | None = None) -> int:
        """A whole number from 0, or the one that a list has for every layer.

        Args:
            field: its name in `config.json`, whose bounds it has (`untrusted.numbers`).
            default: taken where the file is silent; it must not be if there is none.
        """
        found = self._alike(name, self._required(name, default))
        if field is not None:
            check_number(self.path, self._full(name), field, found)
        if type(found) is not int or found < 0:
            raise self.fail(name, found, "expected a whole number from 0")
        return found

    def by_layer(self, name: str, field: str | None = None, default: int | None = None) -> list[int]:
        """The whole numbers from 0 that a list has for each layer, or one for all; the largest has the bounds of
        `field`. Arguments as in `whole`."""
        found, layers = self._required(name, default), self.whole("block_count", "num_hidden_layers")
        each = found if isinstance(found, list) else [found] * layers
        if len(each) != layers:
            raise self.fail(name, found, f"{len(each)} numbers, {self._full('block_count')} is {layers}")
        if not all(type(one) is int and one >= 0 for one in each):
            raise self.fail(name, found, "expected whole numbers from 0")
        if field is not None:
            check_number(self.path, self._full(name), field, max(each))
        return each

    def number(self, name: str, default: float | None = None) -> float:
        """A finite number, or the one that a list has for every layer."""
        found = self._alike(name, self._required(name, default))
        if isinstance(found, bool) or not isinstance(found, int | float) or not math.isfinite(found):
            raise self.fail(name, found, "expected a finite number")
        return float(found)

    def text(self, name: str, default: str) -> str:
        found = self.value(name, default)
        if not isinstance(found, str):
            raise self.fail(name, found, "expected a text")
        return found

    def refuse_rest(self, without_effect: Mapping[str, str]) -> None:
        """Raise ModelFileError for a key that was not asked for and is not known to change nothing."""
        prefix = f"{self.architecture}."
        for name in self._keys:
            rest = name.removeprefix(prefix)
            if rest != name and rest not in self._asked and rest not in without_effect:
                raise ModelFileError(
                    f"{self.path}: {shown(name)[1:-1]}: {shown(self._keys[name])} is not supported: what it asks of a "
                    f"{self.architecture} model is not known here; {_REMEDY}"
                )

    def fail(self, name: str, found: object, problem: str) -> ModelFileError:
        return ModelFileError(f"{self.path}: {self._full(name)}: {shown(found)}, {problem}")

    def refuse(self, name: str, found: object, why: str, remedy: str = "take another model") -> ModelFileError:
        """The error to raise for a setting that the family has no place for."""
        return ModelFileError(f"{self.path}: {self._full(name)}: {shown(found)} is not supported: {why}; {remedy}")

    def _full(self, name: str) -> str:
        return f"{self.architecture}.{name}"

    def _required(self, name: str, default: Any) -> Any:
        found = self.value(name, default)
        if found is None:
            raise ModelFileError(
                f"{self.path}: not a readable GGUF model: {self._full(name)}: the file does not say it; is it complete?"
            )
        return found

    def _alike(self, name: str, found: Any) -> Any:
        """The number that a list has for every layer; any other value as it is."""
        if not isinstance(found, list):
            return found
        if len(found) != self.value("block_count"):
            raise self.fail(name, found, f"{len(found)} numbers for {shown(self.value('block_count'))} layers")
        if len(set(found)) > 1:
            raise self.refuse(name, found, "its layers have sizes of their own", "take a model whose layers are alike")
        return found[0]
