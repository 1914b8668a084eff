"""Checks a start of vLLM before anything heavy is imported; begin with all_checks.py."""
