"""`run-batch`: begin at run_batch.py."""
