"""Errors in the words of the command line."""

from __future__ import annotations

import pytest

from stratakv.runtime.cli.one_line import fault, is_out_of_memory, with_flags, words


@pytest.mark.parametrize(
    ("message", "said"),
    [
        ("lower host_gb", "lower --host-kv-gb"),
        ("choose another (path=)", "choose another (--kv-dir)"),
        ("top_k is at least 0", "--top-k is at least 0"),
        ("no setting 'top_k'", "no setting 'top_k'"),
        ("/home/top_k/x: not there", "/home/top_k/x: not there"),
        ('"host_gb" and host_gb', '"host_gb" and --host-kv-gb'),
        ("my_host_gb", "my_host_gb"),
        ("max_repeats=0 lets it go on", "--max-repeats 0 lets it go on"),
    ],
)
def test_arguments_become_options_where_they_are_words(message: str, said: str) -> None:
    assert with_flags(message) == said


def test_a_table_of_ones_own() -> None:
    assert with_flags("top_k and host_gb", {"top_k": "/set top_k"}) == "/set top_k and host_gb"


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (ValueError("no such thing"), "no such thing"),
        (ValueError(), "ValueError"),
        (FileNotFoundError(2, "No such file or directory", "a.txt"), "a.txt: No such file or directory"),
        (OSError(28, "No space left on device"), "No space left on device"),
        (OSError("mine"), "mine"),
        (RecursionError("depth"), "too deeply nested: depth"),
        (MemoryError(), "not enough memory; lower host_gb or gpu_gb, or shorten the context (nothing was allocated)"),
    ],
)
def test_words_for_an_error(error: BaseException, said: str) -> None:
    assert words(error) == said


def test_what_means_that_memory_is_exhausted() -> None:
    assert is_out_of_memory(RuntimeError("CUDA out of memory. Tried to allocate"))
    assert is_out_of_memory(RuntimeError("DefaultCPUAllocator: can't allocate memory"))
    assert not is_out_of_memory(RuntimeError("shapes differ"))
    assert not is_out_of_memory(ValueError("out of memory"))


def test_a_fault_says_how_to_see_more(monkeypatch: pytest.MonkeyPatch) -> None:
    for debug, ending in (("", "; STRATAKV_DEBUG=1 shows where"), ("0", "; STRATAKV_DEBUG=1 shows where"), ("1", "")):
        monkeypatch.setenv("STRATAKV_DEBUG", debug)
        assert fault(KeyError("a")) == f"a fault of the program, please report it: KeyError: 'a'{ending}"
