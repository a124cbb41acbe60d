"""Sequences: prefill, decode, forks and rollbacks over the layers of a model, within a plan of what lives where."""
