"""Everything that callers give and get: settings, replies, errors. Every room may import it; it imports `process`
alone."""
