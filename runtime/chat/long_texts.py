"""Texts that no model could hold, refused after a look at their beginning.

A tokenizer takes a text as a whole: for seconds to minutes where it is megabytes long, and it hears of no Ctrl-C
meanwhile. So a long text is looked at in pieces before. What those give is what the whole gives, but for a few tokens
at the cuts.
"""

from __future__ import annotations

from .loaded import Loaded

LONG = 1 << 18
"""Characters of a text from which on it is looked at first, and of a piece."""
_AT_A_CUT = 64
"""Tokens that a cut may add, generously."""


def refuse_long(loaded: Loaded, held: int, text: str, what: str) -> None:
    """Raises DoesNotFitError if `text` beside `held` tokens exceeds the model's window or the tiers, as far as can be
    told of a long one; and whatever a safe point raises."""
    backend, room, found = loaded.tokenizer.backend_tokenizer, loaded.room_tokens(held), 0
    room = min(room, loaded.model.max_positions - held)
    for start in range(0, len(text) if len(text) > LONG else 0, LONG):
        loaded.engine.interrupts.check()
        piece = backend.encode(text[start : start + LONG], add_special_tokens=False)
        found += max(0, len(piece.ids) - _AT_A_CUT)
        if found > room:
            loaded.check_fits(held, found, f"{what} (its first {min(start + LONG, len(text))} characters)")
