"""The care for a process in which we are one guest: its threads, cores, devices, signals, terminal and files."""
