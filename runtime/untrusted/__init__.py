"""A model's JSON files, weight headers and chat template: bytes from strangers, read within bounds before use."""
