"""The KV of one layer of one sequence: tiered with an index, or a sliding window; what it keeps near, sends ahead."""
