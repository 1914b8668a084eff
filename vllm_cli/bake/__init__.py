"""`bake`: begin at bake.py."""
