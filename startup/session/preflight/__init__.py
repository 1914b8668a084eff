"""Checks before a start. Each check is a function that yields findings. `run` lists them in order."""
