"""Checks a start of vLLM before anything heavy is imported; begin with run.py."""
