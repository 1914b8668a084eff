"""One process of a model and everything that belongs to it. Begin with `child.py`."""
