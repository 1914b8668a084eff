"""The order of a start, and what is decided before it. A reader begins with `start.py`."""
