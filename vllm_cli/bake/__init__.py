"""`bake`: begin at run.py."""
