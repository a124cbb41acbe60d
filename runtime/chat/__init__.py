"""`Runtime`, the front door, and `Chat`: conversations over documents."""
