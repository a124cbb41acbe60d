"""Keys by channel and values by token, in 2 bits a number (KIVI, arXiv 2402.02750)."""

from __future__ import annotations

from dataclasses import dataclass

from ..page import PageLayout
from .codec import Profile
from .grouped import GroupedCodec


@dataclass(frozen=True, kw_only=True, slots=True)
class KiviOptions:
    """Settings of `KiviCodec`."""

    bits: int = 2
    """Bits per number: 2, the paper's headline, or 4."""

    def __post_init__(self) -> None:
        if self.bits not in (2, 4):
            raise ValueError(f"bits is 2 or 4, not {self.bits}")


class KiviCodec(GroupedCodec):
    """Idea   outliers of keys stay in the same channels, so a channel's tokens share a minimum and a scale; values have
             no such channels, so 32 channels of one token do.
    For    little room for long texts of any model, without calibration.
    State  codes of `bits` bits, and 4 bytes per group: at 16 tokens and 64 channels 3.5 bits a number, or 5.5.
    Cost   a few passes over the page, to encode and to decode.
    Paper  KIVI, arXiv 2402.02750: groups of 32, a residual of 32 to 128 exact tokens.
    Differs  a key group is at most the page: 16 tokens where the paper has 32, which errs less and takes a bit more
             per number; `page_size=32` is the paper's. The residual is what memory holds: tokens are exact until their
             page has left it, and those of the unsealed page always. Keys have their positions applied, as in the
             paper's code. Minima and scales are fp16, rounded outwards, so that no number is cut off: how the paper's
             are rounded could not be checked. Attention reads restored numbers; the paper's kernels multiply codes.
    """

    name, code, most = "kivi", 4, 32
    Options = KiviOptions

    def __init__(self, layout: PageLayout, options: KiviOptions | None = None, profile: Profile | None = None) -> None:
        options = options or KiviOptions()
        self.bits = options.bits
        super().__init__(layout, options, profile)
