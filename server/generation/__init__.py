"""What all APIs that generate share: a request becomes a `Generation`, and its output becomes deltas.

Begin with `chat.py`.
"""
