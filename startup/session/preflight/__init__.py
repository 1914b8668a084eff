"""Checks before a start. Each check is a function that yields findings. `all_checks` has the order."""
