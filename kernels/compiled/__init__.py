"""A decode step in compiled loops: a table of operations (`record`) that a team of threads works through (`team`)."""
