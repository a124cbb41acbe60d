"""What `stratakv.retrieval` offers, and what it imports for that."""

from __future__ import annotations

import subprocess
import sys

import pytest

from stratakv import retrieval
from stratakv.retrieval.index import Index, Selection
from stratakv.retrieval.layer import IndexedLayer


def test_every_name_on_the_list_is_there() -> None:
    assert [name for name in retrieval.__all__ if not hasattr(retrieval, name)] == []
    assert (retrieval.Index, retrieval.Selection, retrieval.IndexedLayer) == (Index, Selection, IndexedLayer)


def test_a_name_that_is_not_there_is_named() -> None:
    with pytest.raises(AttributeError, match=r"module 'stratakv\.retrieval' has no attribute 'Nearest'"):
        _ = retrieval.Nearest


def test_settings_are_read_without_a_tensor_library() -> None:
    probe = (
        "import sys; from stratakv import retrieval\n"
        "retrieval.split_spec('spectral:rank=8'), retrieval.IndexParams(sink=4), retrieval.index_names()\n"
        "print(sorted({'torch', 'numpy'} & {*sys.modules}))"
    )
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
