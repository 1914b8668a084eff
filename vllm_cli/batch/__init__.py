"""`run-batch`: begin at run.py."""
