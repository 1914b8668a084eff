"""The log of each process; `setup` configures it."""
