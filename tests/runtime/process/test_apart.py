"""What the application has set for its own tensors and loading bars neither applies to ours nor is changed by us."""

from __future__ import annotations

import pytest
import torch

from stratakv.runtime.process.apart import apart, fp32, without_progress_bar

CPU = torch.device("cpu")


@pytest.mark.parametrize("was_shown", [True, False])
def test_transformers_bars_are_shown_again_if_they_were(was_shown: bool) -> None:
    from transformers.utils import logging

    before = logging.is_progress_bar_enabled()
    (logging.enable_progress_bar if was_shown else logging.disable_progress_bar)()
    try:
        with without_progress_bar():
            assert not logging.is_progress_bar_enabled()
        assert logging.is_progress_bar_enabled() is was_shown
    finally:
        (logging.enable_progress_bar if before else logging.disable_progress_bar)()


def test_tensors_are_made_on_the_cpu_where_nothing_is_said() -> None:
    with torch.device("meta"):
        with apart():
            assert torch.empty(1).device == CPU
            assert torch.empty(1, device="meta").device.type == "meta"
        assert torch.empty(1).device.type == "meta"


def test_products_keep_the_dtype_that_their_factors_have() -> None:
    ones = torch.ones(2, 2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        with apart():
            assert (ones @ ones).dtype == torch.float32
        assert (ones @ ones).dtype == torch.bfloat16


def test_both_at_once_and_what_was_set_holds_again_after_an_error() -> None:
    def work() -> None:
        with apart():
            assert (torch.get_default_device(), torch.is_autocast_enabled("cpu")) == (CPU, False)
            raise OSError("no")

    with torch.device("meta"), torch.autocast("cpu"):
        with pytest.raises(OSError, match="no"):
            work()
        assert (torch.get_default_device().type, torch.is_autocast_enabled("cpu")) == ("meta", True)
    assert (torch.get_default_device(), torch.is_autocast_enabled("cpu")) == (CPU, False)


def test_memory_for_fp32_has_room_for_it_whatever_the_default_is() -> None:
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float16)
    try:
        assert (fp32(3, 5).dtype, fp32(3, 5).nbytes) == (torch.float32, 60)
    finally:
        torch.set_default_dtype(before)
