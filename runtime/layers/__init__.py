"""What one layer keeps of one sequence: KV in tiers with an index, a window of it, a state; what is near."""
