"""Checks before any work that memory has the pages which a batch takes."""

from __future__ import annotations

from bisect import bisect_left

from ...storage import Arena, TieredStore
from ..api.errors import DoesNotFitError
from .planner import GB, Plan, free_memory


def check_open_pages(plan: Plan, store: TieredStore, prompts: int) -> None:
    """Raises DoesNotFitError unless the compute tier can hold one open page per prompt and layer: the page that a
    sequence writes stays where attention reads. What sequences hold beside pages is planned for one; the device must
    have room for the others'."""
    tier, spare, needed = store.compute, num_spare(store, store.compute), prompts * plan.num_tiered
    if needed > spare:
        raise DoesNotFitError(
            f"the batch does not fit: {prompts} prompts x {plan.num_tiered} layers = {needed} open pages, but the "
            f"{tier.name} tier has {spare} to spare of its {tier.num_slots}, enough for {spare // plan.num_tiered} "
            f"prompts; give fewer at a time, or raise {tier.name}_gb"
        )
    held = (prompts - 1) * plan.held.sequence_bytes
    if held and held > (free := free_memory(tier.data.device)):
        raise DoesNotFitError(
            f"the batch does not fit: {prompts} prompts hold {plan.held.named} of {plan.held.sequence_bytes / GB:.3g} "
            f"GB each, and {free / GB:.3g} GB of memory are free; give fewer at a time"
        )


def within_memory(plan: Plan, store: TieredStore, window: int, lengths: list[int], new: int, *, is_asked: bool) -> int:
    """How many tokens each reply may have where nothing can leave memory, which is given in whole pages: `new`, or
    unless that `is_asked` for, as many as there is room for.

    Args:
        window: tokens that the model takes; no reply goes beyond it.
        lengths: tokens of each prompt.

    Raises DoesNotFitError, with the sum.
    """
    if store.disk is not None or not plan.num_tiered:
        return new
    size = plan.layout.page_size
    room = num_spare(store, store.host) // plan.num_tiered * size

    def needed(new: int) -> int:  # the last token of a reply is never stored
        return sum(-(-(length + min(new, window - length) - 1) // size) * size for length in lengths)

    if not is_asked:
        new = max(1, bisect_left(range(1, min(new, window) + 1), True, key=lambda new: needed(new) > room))
    if needed(new) > room:
        raise DoesNotFitError(
            f"the batch does not fit: its prompts and replies take {needed(new)} tokens in pages of {size}, but the "
            f"host tier has room for {room} beside what other conversations hold; give fewer prompts at a time, raise "
            f"host_gb, or {plan.disk_knob}"
        )
    return new


def num_spare(store: TieredStore, tier: Arena) -> int:
    """Slots of a memory tier that new pages may take: all but open pages, and those whose pages cannot leave."""
    may_leave = tier is store.gpu or store.disk is not None
    return tier.num_slots - tier.num_filling if may_leave else tier.num_free
