"""Saved conversations, and the store folder that they live in."""
