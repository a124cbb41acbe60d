"""What a layer has chosen for those after it, until its tokens are through all layers.

One for a sequence: a layer that chooses (`retrieval.index.Part`) puts its choice here, and the layers after it read the
same token's, up to the next layer that chooses. Layers are passed in order, token by token or each of them by many
tokens at once; either way a choice has been put before anybody asks. Nothing of it outlives a step: forks, sessions and
snapshots have nothing of it. Beside that it knows what the choice may go by: where rounds of the dialogue begin.
"""

from __future__ import annotations

from ...retrieval.index import Selection


class Choices:
    """The choices of the last layer that chose, by token."""

    def __init__(self) -> None:
        self._layer: int | None = None
        self._chosen: dict[int, Selection] = {}
        self.newest: Selection | None = None
        """The choice that was put last; None: no layer has chosen yet."""
        self.rounds: list[int] = []
        """Where rounds of the dialogue begin besides at the first token: where a prompt comes after a reply."""

    def put(self, layer: int, length: int, chosen: Selection) -> None:
        """`layer` has chosen for the last token of a text of `length` tokens. What another layer chose is over."""
        if layer != self._layer:
            self.clear()
            self._layer = layer
        self._chosen[length] = self.newest = chosen

    def of(self, length: int) -> Selection:
        """What was chosen for the last token of a text of `length` tokens."""
        assert length in self._chosen, "a layer follows, and none before it has chosen for this token"
        return self._chosen[length]

    def clear(self) -> None:
        """All tokens are through, or given up."""
        self._layer, self._chosen, self.newest = None, {}, None
