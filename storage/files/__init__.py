"""Files and folders: private, locked, nameless until whole, gone with their owner."""
