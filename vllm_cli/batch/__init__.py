"""Implements `run-batch`. Begin with `run_batch.py`."""
