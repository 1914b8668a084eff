"""Checks a start of vLLM before anything heavy is imported. Begin with `all_checks.py`."""
