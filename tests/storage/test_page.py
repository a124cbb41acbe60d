"""Page names: the chain hash and the key. Stored pages are found by them, so they may never change."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stratakv.storage import ROOT, PageLayout, next_chain, page_key

TOKENS = np.arange(16, dtype=np.uint32)
once = settings(max_examples=60, derandomize=True, deadline=None)
pages = st.lists(st.lists(st.integers(0, 2**32 - 1), min_size=4, max_size=4), min_size=1, max_size=5)


def chain_of(tokens: list[list[int]], salt: bytes = b"") -> list[bytes]:
    chains, chain = [], ROOT
    for page in tokens:
        chain = next_chain(chain, np.array(page, dtype=np.uint32), salt)
        chains.append(chain)
    return chains


def test_chain_is_stable() -> None:
    """Golden values: another machine, another Python, next year."""
    first = next_chain(ROOT, TOKENS)
    assert first.hex() == "eedd4ec522e47583caadbe52d0e12ad4"
    assert next_chain(first, TOKENS).hex() == "eea48aef72b4e290d1b7c79c24fc9f8c"
    assert next_chain(ROOT, TOKENS, b"settings").hex() == "24ceff9a0c2eb3e79cdacf18f8defdc2"


@pytest.mark.parametrize("dtype", [np.uint16, np.int64, np.dtype(">u4")], ids=str)
def test_chain_depends_on_token_ids_not_on_their_dtype(dtype: np.dtype) -> None:
    assert next_chain(ROOT, TOKENS.astype(dtype)) == next_chain(ROOT, TOKENS)
    assert next_chain(ROOT, np.repeat(TOKENS, 2)[::2]) == next_chain(ROOT, TOKENS)


@once
@given(pages, pages)
def test_equal_chains_mean_equal_prefixes(a: list[list[int]], b: list[list[int]]) -> None:
    """Chain i names pages 0..i: it is equal in two texts exactly as far as they agree."""
    agree = 0
    while agree < min(len(a), len(b)) and a[agree] == b[agree]:
        agree += 1
    chains_a, chains_b = chain_of(a), chain_of(b)
    assert chains_a[:agree] == chains_b[:agree]
    assert not set(chains_a[agree:]) & set(chains_b)


@once
@given(pages, st.integers(0, 4), st.integers(0, 3), st.integers(1, 2**32 - 1))
def test_one_token_changes_every_later_chain(tokens: list[list[int]], page: int, at: int, change: int) -> None:
    page %= len(tokens)
    other = [list(ids) for ids in tokens]
    other[page][at] ^= change
    before, after = chain_of(tokens), chain_of(other)
    assert before[:page] == after[:page]
    assert all(old != new for old, new in zip(before[page:], after[page:], strict=True))


def test_salt_separates_pages_of_equal_tokens() -> None:
    salts = [b"", b"\1", bytes(15) + b"\1", b"budget=64", b"budget=65"]
    assert len({next_chain(ROOT, TOKENS, salt) for salt in salts}) == len(salts)


@once
@given(st.tuples(st.integers(0, 65535), st.binary(min_size=16, max_size=16)), st.data())
def test_keys_sort_by_layer_then_chain(a: tuple[int, bytes], data: st.DataObject) -> None:
    near = st.tuples(st.sampled_from(sorted({a[0], a[0] ^ 1, 65535 - a[0]})), st.binary(min_size=16, max_size=16))
    b = data.draw(near)
    assert (page_key(*a) < page_key(*b)) == (a < b)
    assert (page_key(*a) == page_key(*b)) == (a == b)


@pytest.mark.parametrize(("dtype", "item"), [("float32", 4), ("bfloat16", 2), ("float16", 2)])
def test_layout_counts_keys_and_values_of_every_head(dtype: str, item: int) -> None:
    layout = PageLayout(num_heads=3, page_size=16, head_dim=80, dtype=dtype)
    assert layout.page_bytes == 2 * 3 * 16 * 80 * item
    assert layout.token_bytes * layout.page_size == layout.page_bytes


def test_keys_that_contain_the_values_take_half_and_older_layouts_are_stated_as_ever() -> None:
    """GLM-4.7-Flash: 576 numbers of two bytes a token."""
    apart = PageLayout(num_heads=1, page_size=16, head_dim=576, dtype="bfloat16")
    latent = PageLayout(num_heads=1, page_size=16, head_dim=576, dtype="bfloat16", value_dim=512)
    assert (latent.token_bytes, apart.token_bytes) == (1152, 2304)
    assert apart.stated() == {"num_heads": 1, "page_size": 16, "head_dim": 576, "dtype": "bfloat16"}
    assert latent.stated() == {**apart.stated(), "value_dim": 512}
