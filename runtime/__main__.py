"""`python -m stratakv.runtime` is the `stratakv` command."""

from .cli import main

main()
