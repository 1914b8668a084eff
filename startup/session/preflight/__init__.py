"""Checks before a start, each a function that yields findings; `run` lists them in order."""
