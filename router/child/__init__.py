"""One process of a model, with all that belongs to it: begin with `child.py`."""
