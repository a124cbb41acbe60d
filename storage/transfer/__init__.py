"""Pages on their way: into the store, up from disk, out to attention, down to disk."""
