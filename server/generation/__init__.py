"""The common part of all APIs that generate: a request becomes a `Generation`, its output becomes deltas.

Begin with `chat.py`.
"""
