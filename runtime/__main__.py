"""`python -m stratakv.runtime` is the `stratakv` command."""

from __future__ import annotations

import signal


def main() -> None:
    """Ctrl-C while the command itself is imported ends it without a word; from then on it is an exception."""
    is_ours = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if is_ours:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from .cli.app import main as run

    if is_ours:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    run()


if __name__ == "__main__":
    main()
