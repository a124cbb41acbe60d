"""The command `stratakv`: options in, library calls, words out."""
