"""The order of a start, and the decisions before it. Begin with `start.py`."""
