"""Evaluation: how much answers lose when a decode step reads only part of its context."""
