"""Decides which models run and which requests they get. Begin with `scheduler.py`."""
