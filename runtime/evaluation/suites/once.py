"""Something that several checks need and that is made once, when the first of them asks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class Once(Generic[T]):
    """What several checks compare with: made for the first that asks. An error is raised for each of them.

    Nothing that it was made with is held afterwards.
    """

    def __init__(self, make: Callable[[], T]) -> None:
        self._make: Callable[[], T] | None = make
        self._found: T
        self._error: Exception | None = None

    def __call__(self) -> T:
        if self._make is not None:
            make, self._make = self._make, None
            try:
                self._found = make()
            except Exception as error:
                self._error = error
        if self._error is not None:
            raise self._error
        return self._found
