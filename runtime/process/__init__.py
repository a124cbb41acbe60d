"""Being one guest in a process: its threads, cores, devices, signals, terminal and files."""
