"""The refusal of texts that no model could hold, after a look at their beginning.

A tokenizer takes a text as a whole: for seconds to minutes where it is megabytes long, and it hears of no Ctrl-C
meanwhile. So a long text is looked at in pieces before. Their tokens are those of the whole, except for a few
at the cuts.
"""

from __future__ import annotations

from .loaded import Loaded

LONG = 1 << 18
"""The number of characters from which on a text is looked at first, and of the pieces in which that is done."""
_AT_A_CUT = 64
"""The number of tokens that a cut may add, generously."""


def refuse_long(loaded: Loaded, held: int, text: str, what: str) -> None:
    """Raise DoesNotFitError if a long `text` beside `held` tokens can be told to exceed the model's window or the
    tiers; also raises whatever a safe point raises."""
    backend, room, found = loaded.tokenizer.backend_tokenizer, loaded.room_tokens(held), 0
    room = min(room, loaded.model.max_positions - held)
    for start in range(0, len(text) if len(text) > LONG else 0, LONG):
        loaded.engine.interrupts.check()
        piece = backend.encode(text[start : start + LONG], add_special_tokens=False)
        found += max(0, len(piece.ids) - _AT_A_CUT)
        if found > room:
            loaded.check_fits(held, found, f"{what} (its first {min(start + LONG, len(text))} characters)")
