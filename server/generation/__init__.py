"""Code that all generating APIs share. Turns requests into a `Generation`, and engine output into deltas.

Read `chat.py` first.
"""
