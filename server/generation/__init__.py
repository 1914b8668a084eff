"""Code that all generating APIs share. Turns requests into a `Generation`, and its output into deltas.

Read `chat.py` first.
"""
