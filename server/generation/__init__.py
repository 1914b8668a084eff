"""What all generating APIs share: a request becomes a `Generation`, and its output becomes deltas.

Begin with `chat.py`.
"""
