"""The steps of a start, and the decisions before them. Begin with `start.py`."""
