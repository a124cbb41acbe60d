"""The structures that indexes are made of: codebooks, hash tables, trees of boxes, principal directions."""
