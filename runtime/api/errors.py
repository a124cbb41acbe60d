"""The errors that a user can act on. The command line prints their message as one line and exits with 2.

`StratakvError` is the root of these and of the store's (`storage.errors`). What Python has a name for keeps it beside
them: ValueError for a value that is out of range, OSError for a file that cannot be read.
"""

from __future__ import annotations

from ...storage.errors import StratakvError as StratakvError


class ModelFileError(StratakvError):
    """The model cannot be found, read or understood. The message names the file and what is wrong."""


class ProfileError(StratakvError):
    """An index needs a profile that is missing, damaged or another model's. The message names the file and the command
    to run."""


class LaterProfileError(ProfileError):
    """A later version of stratakv wrote a profile. It is not read, and left as it is."""


class DoesNotFitError(StratakvError):
    """A prompt exceeds the model's window or the configured tiers. The message shows the sum."""


class ConversationError(StratakvError):
    """A conversation or model cannot be used now: it is closed, or in use by the call that asks."""


class WrongTypeError(StratakvError, TypeError):
    """An argument is of a type that means nothing there. The message names it, what was given, and what is taken."""


class SessionError(StratakvError):
    """A session cannot be saved or loaded; the running conversation is untouched."""
